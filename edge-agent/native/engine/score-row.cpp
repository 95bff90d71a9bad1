#include "score-row.h"

#include "log-exp.h"
#include "widest-vectors.h"

#include <algorithm>
#include <cmath>

enum { EXP_BLOCK = 32 };
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
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            lowest[i] = lowest[i + half] < lowest[i] ? lowest[i + half] : lowest[i];
            highest[i] = highest[i + half] > highest[i] ? highest[i + half] : highest[i];
        }
    }
    return {lowest[0], highest[0]};
}

double score_mass(float z, float highest) { return exp_of(std::max(LEAST_DIFFERENCE, double(z) - double(highest))); }

WIDEST_VECTORS double score_row_mass(const float * z, int experts, float highest) {
    double mass[EXP_BLOCK], sums[LANES] = {};
    for (int e = 0; e < experts; e += EXP_BLOCK) {
        const int n = std::min(int(EXP_BLOCK), experts - e);
        for (int i = 0; i < n; i++) mass[i] = std::isfinite(z[e + i]) ? double(z[e + i]) - double(highest) : LEAST_DIFFERENCE;
        std::fill(mass + n, mass + EXP_BLOCK, LEAST_DIFFERENCE);
        for (int i = 0; i < EXP_BLOCK; i++) mass[i] = std::max(LEAST_DIFFERENCE, mass[i]);
        exp_doubles<EXP_BLOCK>(mass);
        for (int i = 0; i < EXP_BLOCK; i++) sums[i % LANES] += mass[i];
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    }
    return sums[0];
}
