/* Integer and floating-point work with a known course: queens on a board, sums of series, a hash of doubles' bits. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static int queens(int size, unsigned columns, unsigned left, unsigned right) {
    unsigned all = (1u << size) - 1;
    if (columns == all) return 1;
    int found = 0;
    for (unsigned free = all & ~(columns | left | right); free; free &= free - 1) {
        unsigned bit = free & -free;
        found += queens(size, columns | bit, (left | bit) << 1, (right | bit) >> 1);
    }
    return found;
}

int main(void) {
    uint64_t hash = 14695981039346656037u;
    static double field[512];
    for (int i = 0; i < 512; i++) field[i] = sin(i) * 1e3;
    for (int round = 0; round < 2000; round++) {
        for (int i = 1; i < 511; i++) field[i] = (field[i - 1] + field[i] * 2 + field[i + 1]) / 4.0000001;
        float narrow = (float)field[round % 512];
        uint32_t bits;
        memcpy(&bits, &narrow, 4);
        hash = (hash ^ bits ^ (uint64_t)(int64_t)field[round % 500]) * 1099511628211u;
    }
    long double series = 0;
    for (int i = 1; i < 100000; i++) series += 1.0L / ((long double)i * i);
    printf("%d %016llx %.17Lg %.17g\n", queens(9, 0, 0, 0), (unsigned long long)hash, series, sqrt(pow(2, 0.5)));
    return 0;
}
