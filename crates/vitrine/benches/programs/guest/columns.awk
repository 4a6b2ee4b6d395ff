# Fields, associative arrays, string functions and arithmetic.
{
    for (i = 1; i <= NF; i++) {
        seen[length($i)]++
        sum += length($i) * (i % 3)
        if ($i ~ /^[a-z]+\(/)
            calls[substr($i, 1, index($i, "(") - 1)]++
    }
    last = (last * 31 + NF) % 65521
}
END {
    for (name in calls)
        distinct++
    for (size = 1; size < 40; size++)
        printf "%d:%d ", size, seen[size]
    print sum, last, distinct
}
