#include "score-row.h"

#include "log-exp.h"
#include "vector-sums.h"

#include <algorithm>
#include <cmath>

enum { BLOCK = 8 * LANES };
static const double LEAST_DIFFERENCE = -700;  // of a score from the highest: its mass is nothing beside 1

WIDEST_VECTORS score_extent score_row_extent(const float * z, int experts) {
    float lowest[LANES], highest[LANES];
    std::fill(lowest, lowest + LANES, INFINITY);
    std::fill(highest, highest + LANES, -INFINITY);
    int e = 0;
    for (; e + LANES <= experts; e += LANES) {
        for (int i = 0; i < LANES; i++) {
            const bool finite = std::isfinite(z[e + i]);
            const float low = finite ? z[e + i] : INFINITY, high = finite ? z[e + i] : -INFINITY;
            lowest[i] = low < lowest[i] ? low : lowest[i];
            highest[i] = high > highest[i] ? high : highest[i];
        }
    }
    for (; e < experts; e++) {
        if (!std::isfinite(z[e])) continue;
        lowest[0] = std::min(lowest[0], z[e]);
        highest[0] = std::max(highest[0], z[e]);
    }
    return {folded<lower>(lowest), folded<higher>(highest)};
}

double score_mass(float z, float highest) { return exp_of(std::max(LEAST_DIFFERENCE, double(z) - double(highest))); }

// In steps, each of which becomes vectors.
WIDEST_VECTORS double score_row_mass(const float * z, int experts, float highest) {
    float known[BLOCK];
    double difference[BLOCK], sums[LANES] = {};
    for (int e = 0; e < experts; e += BLOCK) {
        const int n = std::min(int(BLOCK), experts - e), whole = whole_lanes(n);
        for (int i = 0; i < n; i++) known[i] = std::isfinite(z[e + i]) ? z[e + i] : -INFINITY;
        std::fill(known + n, known + whole, -INFINITY);
        for (int i = 0; i < whole; i++) difference[i] = std::max(LEAST_DIFFERENCE, double(known[i]) - double(highest));
        for (int at = 0; at < whole; at += LANES) {
            for (int i = 0; i < LANES; i++) sums[i] += exp_of(difference[at + i]);
        }
    }
    return folded<add>(sums);
}
