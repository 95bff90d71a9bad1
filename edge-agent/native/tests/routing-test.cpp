#include "routing.h"

#include "check.h"

#include <cmath>
#include <cstring>
#include <limits>

static const float INF = std::numeric_limits<float>::infinity();

static void leaves_ids_alone_without_a_pull() {
    const float z[4] = {1, 4, 3, 2};
    const uint8_t resident[4] = {1, 0, 0, 1};
    int32_t ids[2] = {1, 2};
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 0, 0, 3, ids, 2).swaps, 0);
    CHECK(ids[0] == 1 && ids[1] == 2);
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_ORIGINAL, 1, 0, 3, ids, 2).swaps, 0);
    CHECK(ids[0] == 1 && ids[1] == 2);
}

static void prefers_residents_by_lambda_times_delta() {
    // Range 3. Bonus 0.5 * 3 = 1.5: expert 3 scores 3.5, expert 0 scores 2.5; 1 has 4, 2 has 3.
    const float z[4] = {1, 4, 3, 2};
    const uint8_t resident[4] = {1, 0, 0, 1};
    int32_t ids[2] = {1, 2};
    const route_outcome o = route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 0.5, 0, 3, ids, 2);
    CHECK(ids[0] == 1 && ids[1] == 3);
    CHECK_EQUAL(o.swaps, 1);
    const double total = std::exp(1) + std::exp(4) + std::exp(3) + std::exp(2);
    CHECK_NEAR(o.mass_lost, (std::exp(3) - std::exp(2)) / total, 1e-9);
}

static void never_displaces_the_top_j() {
    // Lambda 1 with topJ 0 takes the two residents; topJ 1 keeps expert 1 and drops the weaker resident.
    const float z[4] = {1, 4, 3, 2};
    const uint8_t resident[4] = {1, 0, 0, 1};
    int32_t none[2] = {1, 2}, one[2] = {1, 2}, both[2] = {1, 2};
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 1, 0, 3, none, 2).swaps, 1);
    CHECK(none[0] == 3 && none[1] == 1);  // 5; then 1 and 0 tie at 4, and the model prefers 1
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 1, 1, 3, one, 2).swaps, 1);
    CHECK(one[0] == 1 && one[1] == 3);
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 1, 2, 3, both, 2).swaps, 0);
    CHECK(both[0] == 1 && both[1] == 2);
}

static void never_selects_a_masked_expert() {
    const float z[4] = {2, 1, -INF, 0};
    const uint8_t resident[4] = {0, 0, 1, 0};
    int32_t ids[2] = {0, 1};
    CHECK_NEAR(route_range(z, 4), 2, 0);
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 1, 0, 2, ids, 2).swaps, 0);
    CHECK(ids[0] == 0 && ids[1] == 1);
    const float few[4] = {-INF, 1, -INF, NAN};
    int32_t kept[2] = {1, 0};
    CHECK_EQUAL(route_select(few, 4, resident, ROUTING_CACHE_PRIOR, 1, 0, 2, kept, 2).swaps, 0);
    CHECK(kept[0] == 1 && kept[1] == 0);
}

static void breaks_ties_by_the_models_order_then_index() {
    const float z[4] = {1, 1, 1, 1};
    const uint8_t resident[4] = {0, 0, 0, 0};
    int32_t ids[2] = {3, 1};
    CHECK_EQUAL(route_select(z, 4, resident, ROUTING_CACHE_PRIOR, 1, 0, 0, ids, 2).swaps, 0);
    CHECK(ids[0] == 3 && ids[1] == 1);
    // Residents 0 and 2 tie above the others: the lower index first.
    const uint8_t two[4] = {1, 0, 1, 0};
    CHECK_EQUAL(route_select(z, 4, two, ROUTING_CACHE_PRIOR, 1, 0, 1, ids, 2).swaps, 2);
    CHECK(ids[0] == 0 && ids[1] == 2);
}

static void averages_ranges_over_all_tokens() {
    range_mean mean;
    CHECK_NEAR(range_mean_value(mean), 0, 0);
    range_mean_add(mean, 2);
    range_mean_add(mean, 5);
    CHECK_NEAR(range_mean_value(mean), 3.5, 1e-12);
    const float all_masked[2] = {-INF, -INF};
    CHECK_NEAR(route_range(all_masked, 2), 0, 0);
}

int main() {
    leaves_ids_alone_without_a_pull();
    prefers_residents_by_lambda_times_delta();
    never_displaces_the_top_j();
    never_selects_a_masked_expert();
    breaks_ties_by_the_models_order_then_index();
    averages_ranges_over_all_tokens();
    return checks_done();
}
