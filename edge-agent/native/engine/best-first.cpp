#include "best-first.h"

#include "widest-vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// A float's bits as an integer that orders as floats do: those of negative ones count down. Both zeros are one.
WIDEST_VECTORS void best_first_begin(const float * __restrict z, int experts, int32_t * __restrict keys) {
    for (int e = 0; e < experts; e++) {
        const float score = z[e] + 0.0f;
        int32_t bits;
        memcpy(&bits, &score, sizeof(bits));
        const int32_t key = bits ^ ((bits >> 31) & INT32_MAX);
        keys[e] = std::isfinite(z[e]) ? key : BEST_FIRST_NONE;
    }
}

WIDEST_VECTORS static int find_best(const int32_t * keys, int experts) {
    int32_t best = BEST_FIRST_NONE;
    for (int e = 0; e < experts; e++) best = std::max(best, keys[e]);
    int32_t from_end = 0;
    for (int32_t e = 0; e < experts; e++) from_end = std::max(from_end, -int32_t(keys[e] == best) & (experts - e));
    return experts - from_end;
}

int best_first_next(int32_t * keys, int experts) {
    const int best = find_best(keys, experts);
    if (keys[best] == BEST_FIRST_NONE) return -1;
    keys[best] = BEST_FIRST_NONE;
    return best;
}
