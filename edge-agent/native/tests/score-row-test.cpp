#include "best-first.h"
#include "score-row.h"

#include "check.h"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

static const float INF = std::numeric_limits<float>::infinity();

// With ties, both zeros and masked experts of all three kinds.
static std::vector<float> row_of(int experts, std::mt19937 & random) {
    std::vector<float> z;
    for (int e = 0; e < experts; e++) {
        const int kind = int(random() % 20);
        z.push_back(kind == 0 ? -INF : kind == 1 ? INF : kind == 2 ? NAN : kind == 3 ? -0.0f : float(random() % 30) - 15);
    }
    return z;
}

static void comes_best_first() {
    std::mt19937 random(5);
    for (int experts = 1; experts < 200; experts++) {
        const std::vector<float> z = row_of(experts, random);
        std::vector<int32_t> expected, keys(z.size());
        for (int e = 0; e < experts; e++) {
            if (std::isfinite(z[size_t(e)])) expected.push_back(e);
        }
        std::stable_sort(expected.begin(), expected.end(), [&](int32_t a, int32_t b) { return z[size_t(a)] > z[size_t(b)]; });
        best_first_begin(z.data(), experts, keys.data());
        for (const int32_t e : expected) CHECK_EQUAL(best_first_next(keys.data(), experts), e);
        CHECK_EQUAL(best_first_next(keys.data(), experts), -1);
    }
}

static void has_the_extent_and_mass_of_its_finite_scores() {
    std::mt19937 random(6);
    for (int experts = 1; experts < 200; experts++) {
        std::vector<float> z = row_of(experts, random);
        z[random() % z.size()] = 7.25f;
        float lowest = INF, highest = -INF;
        for (const float score : z) {
            if (!std::isfinite(score)) continue;
            lowest = std::min(lowest, score);
            highest = std::max(highest, score);
        }
        const score_extent found = score_row_extent(z.data(), experts);
        CHECK_EQUAL(found.lowest, lowest);
        CHECK_EQUAL(found.highest, highest);
        double mass = 0;
        for (const float score : z) mass += std::isfinite(score) ? std::exp(double(score) - highest) : 0;
        CHECK_NEAR(score_row_mass(z.data(), experts, highest) / mass, 1, 1e-14);
    }
    const float masked[3] = {-INF, NAN, INF}, far[3] = {-3e38f, 3e38f, -INF};
    CHECK(score_row_extent(masked, 3).lowest > score_row_extent(masked, 3).highest);
    CHECK_EQUAL(score_row_mass(far, 3, 3e38f), 1);
    CHECK_EQUAL(score_mass(1.5f, 1.5f), 1);
    CHECK_NEAR(score_mass(-1, 2), std::exp(-3), 1e-15);
}

int main() {
    comes_best_first();
    has_the_extent_and_mass_of_its_finite_scores();
    return checks_done();
}
