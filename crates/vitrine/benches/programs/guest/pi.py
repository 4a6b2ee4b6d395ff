# Long integers: decimals of pi by Machin's formula, 100 at a time.
DIGITS = 22000


def arctan_inverse(x, one):
    term = total = one // x
    n = 1
    while term:
        term //= x * x
        n += 2
        total += -term // n if n & 2 else term // n
    return total


one = 10 ** (DIGITS + 10)
pi = 4 * (4 * arctan_inverse(5, one) - arctan_inverse(239, one)) // 10**10
while pi:
    pi, part = divmod(pi, 10**100)
    print("%0100d" % part)
