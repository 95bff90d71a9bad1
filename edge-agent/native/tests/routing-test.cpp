#include "routing.h"

#include "expert-cache.h"

#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <utility>
#include <vector>

static int allocations = 0;
void * operator new(size_t bytes) {
    allocations++;
    if (void * p = malloc(bytes)) return p;
    throw std::bad_alloc();
}
void operator delete(void * p) noexcept { free(p); }
void operator delete(void * p, size_t) noexcept { free(p); }

static const float INF = std::numeric_limits<float>::infinity();

static route_outcome select(const route_policy & policy, const float * z, int experts, const uint8_t * resident, double delta,
                            int32_t * ids, int k, int layer = 0, uint64_t token = 1) {
    std::vector<int32_t> ranking(size_t(experts), -1);
    return route_select(policy, {z, experts, resident, delta, layer, token, ranking.data()}, ids, k);
}

static route_outcome by_prior(double lambda, int top_j, const float * z, const uint8_t * resident, double delta, int32_t * ids) {
    route_policy policy;
    policy.routing = ROUTING_CACHE_PRIOR;
    policy.lambda = lambda;
    policy.top_j = top_j;
    return select(policy, z, 4, resident, delta, ids, 2);
}

static route_policy policy_of(engine_routing routing, int top_j) {
    route_policy policy;
    policy.routing = routing;
    policy.top_j = top_j;
    return policy;
}

static void leaves_ids_alone_without_a_pull() {
    const float z[4] = {1, 4, 3, 2};
    const uint8_t resident[4] = {1, 0, 0, 1};
    int32_t ids[2] = {1, 2};
    CHECK_EQUAL(by_prior(0, 0, z, resident, 3, ids).swaps, 0);
    CHECK(ids[0] == 1 && ids[1] == 2);
    route_policy original;
    original.lambda = 1;
    CHECK_EQUAL(select(original, z, 4, resident, 3, ids, 2).swaps, 0);
    CHECK(ids[0] == 1 && ids[1] == 2);
}

static void prefers_residents_by_lambda_times_delta() {
    // Range 3. Bonus 0.5 * 3 = 1.5: expert 3 scores 3.5, expert 0 scores 2.5; 1 has 4, 2 has 3.
    const float z[4] = {1, 4, 3, 2};
    const uint8_t resident[4] = {1, 0, 0, 1};
    int32_t ids[2] = {1, 2};
    const route_outcome o = by_prior(0.5, 0, z, resident, 3, ids);
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
    CHECK_EQUAL(by_prior(1, 0, z, resident, 3, none).swaps, 1);
    CHECK(none[0] == 3 && none[1] == 1);  // 5; then 1 and 0 tie at 4, and the model prefers 1
    CHECK_EQUAL(by_prior(1, 1, z, resident, 3, one).swaps, 1);
    CHECK(one[0] == 1 && one[1] == 3);
    CHECK_EQUAL(by_prior(1, 2, z, resident, 3, both).swaps, 0);
    CHECK(both[0] == 1 && both[1] == 2);
}

static void never_selects_a_masked_expert() {
    const float z[4] = {2, 1, -INF, 0};
    const uint8_t resident[4] = {0, 0, 1, 0};
    int32_t ids[2] = {0, 1};
    CHECK_NEAR(route_range(z, 4), 2, 0);
    CHECK_EQUAL(by_prior(1, 0, z, resident, 2, ids).swaps, 0);
    CHECK(ids[0] == 0 && ids[1] == 1);
    const float few[4] = {-INF, 1, -INF, NAN};
    int32_t kept[2] = {1, 0};
    CHECK_EQUAL(by_prior(1, 0, few, resident, 2, kept).swaps, 0);
    CHECK(kept[0] == 1 && kept[1] == 0);
}

static void breaks_ties_by_the_models_order_then_index() {
    const float z[4] = {1, 1, 1, 1};
    const uint8_t resident[4] = {0, 0, 0, 0};
    int32_t ids[2] = {3, 1};
    CHECK_EQUAL(by_prior(1, 0, z, resident, 0, ids).swaps, 0);
    CHECK(ids[0] == 3 && ids[1] == 1);
    // Residents 0 and 2 tie above the others: the lower index first.
    const uint8_t two[4] = {1, 0, 1, 0};
    CHECK_EQUAL(by_prior(1, 0, z, two, 1, ids).swaps, 2);
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

// Six experts by falling z: 4, 1, 5, 0, 3, 2, with softmax masses e^4, e^3, e^2, e^1, e^0, e^-1 over their sum 85.7910.
static const float Z[6] = {1, 3, -1, 0, 4, 2};
static const double TOTAL = std::exp(4) + std::exp(3) + std::exp(2) + std::exp(1) + 1 + std::exp(-1);

static void max_rank_prefers_residents_within_a_rank() {
    const uint8_t resident[6] = {1, 0, 1, 1, 0, 0};  // ranks 3, 4 and 5 (from 0)
    route_policy policy = policy_of(ROUTING_MAX_RANK, 1);
    const auto choose = [&](int max_rank, int top_j, std::vector<int32_t> ids) {
        policy.max_rank = max_rank;
        policy.top_j = top_j;
        select(policy, Z, 6, resident, 0, ids.data(), int(ids.size()));
        return ids;
    };
    // Rank 0 is kept; of ranks 1 to 3 only expert 0 (rank 3) is resident; expert 1 fills up. In the order of the ranks.
    CHECK(choose(4, 1, {4, 1, 5}) == (std::vector<int32_t>{4, 1, 0}));
    // Without a kept one, and with rank 4 allowed, the residents 0 and 3 come first, then rank 0.
    CHECK(choose(5, 0, {4, 1, 5}) == (std::vector<int32_t>{4, 0, 3}));
    // All ranks: three residents take all three slots.
    CHECK(choose(6, 0, {4, 1, 5}) == (std::vector<int32_t>{0, 3, 2}));
    // Two residents more than there is room for: the better ranked ones.
    CHECK(choose(6, 2, {4, 1, 5}) == (std::vector<int32_t>{4, 1, 0}));
    CHECK(choose(6, 3, {4, 1, 5}) == (std::vector<int32_t>{4, 1, 5}));
    // No resident within M = K: the model's own choice, in its own order even where that is not z's.
    CHECK(choose(3, 0, {4, 1, 5}) == (std::vector<int32_t>{4, 1, 5}));
    CHECK(choose(3, 0, {1, 4, 5}) == (std::vector<int32_t>{1, 4, 5}));

    policy.max_rank = 4;
    policy.top_j = 1;
    int32_t ids[3] = {4, 1, 5};
    const route_outcome o = select(policy, Z, 6, resident, 0, ids, 3);
    CHECK_EQUAL(o.swaps, 1);
    CHECK_EQUAL(o.kept, 3);
    CHECK_NEAR(o.mass_lost, (std::exp(2) - std::exp(1)) / TOTAL, 1e-9);
}

static void a_threshold_makes_the_rank_follow_the_mass() {
    // Masses .6364, .2341, .0861, .0317, .0117, .0043 of 4, 1, 5, 0, 3, 2; sums .6364, .8705, .9567, .9883, .9999..
    const uint8_t resident[6] = {1, 0, 0, 1, 0, 0};  // ranks 3 and 4
    const auto choose = [&](double p, int top_j) {
        route_policy policy = policy_of(ROUTING_CUMULATIVE_THRESHOLD, top_j);
        policy.mass_threshold = p;
        std::vector<int32_t> ids{4, 1, 5};
        select(policy, Z, 6, resident, 0, ids.data(), 3);
        return ids;
    };
    const std::vector<int32_t> own{4, 1, 5};
    CHECK(choose(0, 0) == own);
    CHECK(choose(0.95, 0) == own);                              // M = 3
    CHECK(choose(0.96, 0) == (std::vector<int32_t>{4, 1, 0}));  // M = 4: one resident
    CHECK(choose(0.99, 0) == (std::vector<int32_t>{4, 0, 3}));  // M = 5: two
    CHECK(choose(1, 2) == (std::vector<int32_t>{4, 1, 0}));
    CHECK(choose(1, 3) == own);
    // A flat row spreads its mass, so that the same threshold reaches further.
    const float flat[4] = {0, 0, 0, 0};
    const uint8_t last[4] = {0, 0, 0, 1};
    route_policy policy = policy_of(ROUTING_CUMULATIVE_THRESHOLD, 0);
    int32_t ids[1] = {0};
    policy.mass_threshold = 0.75;
    select(policy, flat, 4, last, 0, ids, 1);
    CHECK_EQUAL(ids[0], 0);
    policy.mass_threshold = 0.76;
    select(policy, flat, 4, last, 0, ids, 1);
    CHECK_EQUAL(ids[0], 3);
}

static void pruning_drops_what_misses_beyond_the_top_j() {
    const uint8_t resident[6] = {1, 0, 1, 1, 0, 1};  // of the model's top four, 5 and 0
    route_policy policy = policy_of(ROUTING_PRUNED, 1);
    int32_t ids[4] = {4, 1, 5, 0};
    const route_outcome o = select(policy, Z, 6, resident, 0, ids, 4);
    CHECK_EQUAL(o.kept, 3);
    CHECK_EQUAL(o.swaps, 0);
    CHECK(ids[0] == 4 && ids[1] == 5 && ids[2] == 0);  // 4 misses too, but is kept
    CHECK_EQUAL(ids[3], 4);                            // a dropped slot names an expert that is there anyway
    CHECK_NEAR(o.mass_lost, std::exp(3) / TOTAL, 1e-9);
    const uint8_t nothing[6] = {0, 0, 0, 0, 0, 0};
    int32_t alone[4] = {4, 1, 5, 0}, whole[4] = {4, 1, 5, 0};
    CHECK_EQUAL(select(policy, Z, 6, nothing, 0, alone, 4).kept, 1);
    policy.top_j = 4;
    CHECK_EQUAL(select(policy, Z, 6, nothing, 0, whole, 4).kept, 4);
    CHECK(whole[0] == 4 && whole[1] == 1 && whole[2] == 5 && whole[3] == 0);
}

static void dropped_slots_weigh_nothing() {
    float plain[4] = {0.5f, 0.25f, 0.125f, 0.5f}, logits[4] = {3, 2, 1, 3};
    route_drop_weights(plain, 3, 4, false);
    CHECK(plain[0] == 0.5f && plain[1] == 0.25f && plain[2] == 0.125f && plain[3] == 0);
    route_drop_weights(logits, 2, 4, true);
    CHECK(logits[0] == 3 && logits[1] == 2 && logits[2] == -INF && logits[3] == -INF);
    route_drop_weights(logits, 4, 4, true);
    CHECK(logits[0] == 3);
}

static void sensitivity_replaces_one_rank_reproducibly() {
    const uint8_t resident[6] = {0, 0, 0, 0, 0, 0};
    route_policy policy = policy_of(ROUTING_SENSITIVITY, 0);
    policy.seed = 5;
    int counts[6] = {0, 0, 0, 0, 0, 0};
    for (int rank = 1; rank <= 3; rank++) {
        policy.rank = rank;
        for (uint64_t token = 1; token <= 3000; token++) {
            int32_t ids[3] = {4, 1, 5}, again[3] = {4, 1, 5};
            const route_outcome o = select(policy, Z, 6, resident, 0, ids, 3, 2, token);
            CHECK_EQUAL(o.swaps, 1);
            CHECK(o.mass_lost > 0);
            select(policy, Z, 6, resident, 0, again, 3, 2, token);
            for (int i = 0; i < 3; i++) {
                CHECK_EQUAL(ids[i], again[i]);
                if (i != rank - 1) CHECK_EQUAL(ids[i], i == 0 ? 4 : i == 1 ? 1 : 5);
            }
            counts[ids[rank - 1]]++;
        }
    }
    CHECK(counts[4] == 0 && counts[1] == 0 && counts[5] == 0);
    // Three experts share 9,000 draws; five standard deviations are 224.
    for (const int e : {0, 2, 3}) CHECK_NEAR(counts[e], 3000, 224);
    // Another seed or layer draws differently.
    int other_seed = 0, other_layer = 0;
    for (uint64_t token = 1; token <= 300; token++) {
        int32_t a[3] = {4, 1, 5}, b[3] = {4, 1, 5}, c[3] = {4, 1, 5};
        select(policy, Z, 6, resident, 0, a, 3, 2, token);
        select(policy, Z, 6, resident, 0, c, 3, 3, token);
        route_policy seeded = policy;
        seeded.seed = 6;
        select(seeded, Z, 6, resident, 0, b, 3, 2, token);
        other_seed += a[2] != b[2];
        other_layer += a[2] != c[2];
    }
    CHECK_NEAR(other_seed, 200, 45);
    CHECK_NEAR(other_layer, 200, 45);
    // Nobody is left to take the place.
    const float two[3] = {1, 2, -INF};
    int32_t all[2] = {1, 0};
    policy.rank = 1;
    CHECK_EQUAL(select(policy, two, 3, resident, 0, all, 2).swaps, 0);
    CHECK(all[0] == 1 && all[1] == 0);
}

static void no_method_selects_a_masked_expert() {
    const float masked[6] = {1, 3, -INF, -INF, 4, 2};
    const uint8_t resident[6] = {1, 1, 1, 1, 0, 0};
    for (const engine_routing routing : {ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_SENSITIVITY}) {
        route_policy policy = policy_of(routing, 0);
        policy.lambda = 1;
        policy.max_rank = 6;
        policy.mass_threshold = 1;
        policy.rank = 2;
        int32_t ids[3] = {4, 1, 5};
        CHECK_EQUAL(select(policy, masked, 6, resident, 3, ids, 3).swaps, 1);
        for (const int32_t e : ids) CHECK(e != 2 && e != 3);
        // Four finite scores do not fill five slots, so the row stays as it is.
        int32_t short_row[5] = {4, 1, 5, 0, 2};
        CHECK_EQUAL(select(policy, masked, 6, resident, 3, short_row, 5).swaps, 0);
        CHECK(short_row[0] == 4 && short_row[4] == 2);
    }
}

// Random rows: the mildest setting of each method is the model's own choice, and every selection is K distinct experts.
static void the_mildest_setting_is_the_models_own_choice() {
    uint64_t state = 1;
    const auto random = [&state] {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return double(state >> 33) / double(1u << 31);
    };
    const int experts = 16, k = 4;
    for (int round = 0; round < 2000; round++) {
        float z[experts];
        uint8_t resident[experts];
        std::vector<int32_t> order;
        for (int e = 0; e < experts; e++) {
            z[e] = float(std::floor(random() * 12));  // with ties
            resident[e] = random() < 0.5;
            order.push_back(e);
        }
        std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a > b; });
        const std::vector<int32_t> own(order.begin(), order.begin() + k);
        const int top_j = int(random() * 5);
        for (const engine_routing routing : {ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD}) {
            route_policy policy = policy_of(routing, top_j);
            policy.max_rank = k;
            std::vector<int32_t> ids = own;
            CHECK_EQUAL(select(policy, z, experts, resident, 5, ids.data(), k).mass_lost, 0);
            CHECK(ids == own);
            policy.lambda = random();
            policy.max_rank = k + int(random() * 13);
            policy.mass_threshold = random();
            const route_outcome o = select(policy, z, experts, resident, 5, ids.data(), k);
            CHECK(o.kept == k && o.mass_lost >= 0);
            for (int j = 0; j < top_j; j++) CHECK(std::find(ids.begin(), ids.end(), own[size_t(j)]) != ids.end());
            std::sort(ids.begin(), ids.end());
            CHECK(std::unique(ids.begin(), ids.end()) == ids.end() && ids.front() >= 0 && ids.back() < experts);
        }
    }
}

// Shortest prefix of the ranks that holds the policy's share of the mass.
static int prefix_by_definition(const route_policy & policy, const float * z, const std::vector<int32_t> & ranks) {
    double total = 0, held = 0;
    for (const int32_t e : ranks) total += std::exp(double(z[e]));
    int n = 0;
    while (n < int(ranks.size()) && held < policy.mass_threshold * total) held += std::exp(double(z[ranks[size_t(n++)]]));
    return n;
}

// Random rows with ties and masked experts, against the definitions. By rank: ranks < topJ, residents of rank < M, the rest, K of them,
// in the order of the ranks. By prior: the K largest of z + bonus, by rank where those are equal.
static void selects_as_a_full_ranking_would(engine_routing routing) {
    std::mt19937 random(11);
    const int experts = 69, k = 8;
    int swaps = 0;
    for (int round = 0; round < 3000; round++) {
        float z[experts];
        uint8_t resident[experts];
        std::vector<int32_t> ranks;
        for (int e = 0; e < experts; e++) {
            z[e] = random() % 10 == 0 ? -INF : float(random() % 80) / 16 - 2;
            resident[e] = random() % 3 == 0;
            if (std::isfinite(z[e])) ranks.push_back(e);
        }
        std::sort(ranks.begin(), ranks.end(), [&](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; });
        route_policy policy = policy_of(routing, int(random() % (k + 1)));
        policy.max_rank = k + int(random() % (experts - k + 1));
        policy.mass_threshold = double(random() % 1000) / 999;
        policy.lambda = double(random() % 1000) / 999;
        const bool by_prior = routing == ROUTING_CACHE_PRIOR;
        const int limit = routing == ROUTING_CUMULATIVE_THRESHOLD ? prefix_by_definition(policy, z, ranks) : policy.max_rank;
        std::vector<std::pair<double, int32_t>> preference;  // group or score, negative, then rank
        for (int r = 0; r < int(ranks.size()); r++) {
            const int32_t e = ranks[size_t(r)];
            const float score = resident[e] || r < policy.top_j ? z[e] + float(policy.lambda * 5) : z[e];
            const int group = r < policy.top_j ? 0 : r < limit && resident[e] ? 1 : 2;
            preference.push_back({by_prior ? -double(score) : group, r});
        }
        std::sort(preference.begin(), preference.end());
        std::vector<int32_t> expected, ids(ranks.begin(), ranks.begin() + k);
        for (int i = 0; i < k; i++) expected.push_back(preference[size_t(i)].second);
        if (!by_prior) std::sort(expected.begin(), expected.end());
        for (int32_t & id : expected) id = ranks[size_t(id)];
        swaps += select(policy, z, experts, resident, 5, ids.data(), k).swaps;
        CHECK(ids == expected);
    }
    CHECK(swaps > 2000);
}

static void a_routing_event_does_not_allocate() {
    const int experts = 64, k = 8;
    std::vector<float> z(experts);
    std::vector<int32_t> ranking(experts);
    expert_cache cache;
    expert_cache_init(cache, experts, 12);
    allocations = 0;
    int events = 0;
    for (int routing = ROUTING_ORIGINAL; routing <= ROUTING_SENSITIVITY; routing++) {
        for (int eviction = EVICT_LRU; eviction <= EVICT_LFRU; eviction++) {
            cache.eviction = engine_eviction(eviction);
            cache.half_life = eviction * 8;
            for (int token = 1; token <= 20; token++) {
                for (int e = 0; e < experts; e++) z[size_t(e)] = float((e * 37 + token * 11) % 64);
                int32_t ids[k], missed[k], evicted[k];
                for (int i = 0; i < k; i++) {  // the index with z = 63 - i
                    for (int e = 0; e < experts; e++) {
                        if (z[size_t(e)] == float(63 - i)) ids[i] = e;
                    }
                }
                route_policy policy = policy_of(engine_routing(routing), 2);
                policy.lambda = 0.3;
                policy.max_rank = 32;
                policy.mass_threshold = 0.9;
                policy.rank = 3;
                const route_outcome o = route_select(policy, {z.data(), experts, cache.resident.data(), 63, 0, uint64_t(token), ranking.data()},
                                                     ids, k);
                cache_event event{0, 0, 0, missed, evicted};
                expert_cache_event(cache, ids, o.kept, event);
                events += event.evictions;
            }
        }
    }
    CHECK(events > 0);
    CHECK_EQUAL(allocations, 0);
}

static void gives_each_layer_its_share_of_a_spec() {
    engine_spec spec;
    spec.routing = ROUTING_CACHE_PRIOR;
    spec.lambda = 0.5;
    spec.top_j = 2;
    spec.first_biased_layer = 1;
    CHECK_EQUAL(route_policy_of(spec, 0).routing, ROUTING_ORIGINAL);
    CHECK_EQUAL(route_policy_of(spec, 1).lambda, 0.5);
    CHECK_EQUAL(route_policy_of(spec, 2).top_j, 2);
    spec.lambdas = {0.1, 0.2, 0.3};
    spec.top_js = {3, 1, 0};
    CHECK_EQUAL(route_policy_of(spec, 1).lambda, 0.2);
    CHECK_EQUAL(route_policy_of(spec, 2).top_j, 0);
}

int main() {
    max_rank_prefers_residents_within_a_rank();
    for (const engine_routing routing : {ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD}) selects_as_a_full_ranking_would(routing);
    a_threshold_makes_the_rank_follow_the_mass();
    pruning_drops_what_misses_beyond_the_top_j();
    dropped_slots_weigh_nothing();
    sensitivity_replaces_one_rank_reproducibly();
    no_method_selects_a_masked_expert();
    the_mildest_setting_is_the_models_own_choice();
    gives_each_layer_its_share_of_a_spec();
    a_routing_event_does_not_allocate();
    leaves_ids_alone_without_a_pull();
    prefers_residents_by_lambda_times_delta();
    never_displaces_the_top_j();
    never_selects_a_masked_expert();
    breaks_ties_by_the_models_order_then_index();
    averages_ranges_over_all_tokens();
    return checks_done();
}
