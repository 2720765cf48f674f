/* A histogram of microseconds with a relative error below 1.6 %: 64 equal steps in each power of two. */

#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_STEP_BITS 6
#define HISTOGRAM_STEPS (1u << HISTOGRAM_STEP_BITS)
#define HISTOGRAM_TOP_BITS 40
#define HISTOGRAM_SIZE ((HISTOGRAM_TOP_BITS - HISTOGRAM_STEP_BITS + 1) * HISTOGRAM_STEPS)

struct histogram {
    uint64_t counts[HISTOGRAM_SIZE];
    uint64_t max;
};

/* The place of a value; histogram.py has the inverse. */
static inline unsigned histogram_index(uint64_t value) {
    if (value < HISTOGRAM_STEPS)
        return (unsigned)value;
    if (value >> HISTOGRAM_TOP_BITS)
        return HISTOGRAM_SIZE - 1;
    unsigned shift = (unsigned)(63 - __builtin_clzll(value)) - HISTOGRAM_STEP_BITS;
    return (shift + 1) * HISTOGRAM_STEPS + ((unsigned)(value >> shift) & (HISTOGRAM_STEPS - 1));
}

static inline void histogram_add(struct histogram *histogram, uint64_t value) {
    histogram->counts[histogram_index(value)]++;
    if (value > histogram->max)
        histogram->max = value;
}

#endif
