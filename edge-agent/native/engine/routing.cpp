#include "routing.h"

#include <algorithm>
#include <cmath>

float route_range(const float * z, int experts) {
    float lowest = INFINITY, highest = -INFINITY;
    for (int e = 0; e < experts; e++) {
        if (!std::isfinite(z[e])) continue;
        if (z[e] < lowest) lowest = z[e];
        if (z[e] > highest) highest = z[e];
    }
    return highest >= lowest ? highest - lowest : 0;
}

void range_mean_add(range_mean & mean, float range) {
    mean.sum += range;
    mean.tokens++;
}

double range_mean_value(const range_mean & mean) {
    return mean.tokens ? mean.sum / double(mean.tokens) : 0;
}

static int rank_among(const int32_t * ids, int k, int expert) {
    for (int i = 0; i < k; i++) {
        if (ids[i] == expert) return i;
    }
    return -1;
}

// Mass the selection gave up, from the experts in which the two choices differ only.
static double mass_lost(const float * z, int experts, const int32_t * own, const int32_t * chosen, int k) {
    float highest = -INFINITY;
    for (int e = 0; e < experts; e++) {
        if (std::isfinite(z[e]) && z[e] > highest) highest = z[e];
    }
    double total = 0;
    for (int e = 0; e < experts; e++) {
        if (std::isfinite(z[e])) total += std::exp(double(z[e]) - highest);
    }
    double lost = 0;
    for (int i = 0; i < k; i++) {
        if (rank_among(chosen, k, own[i]) < 0) lost += std::exp(double(z[own[i]]) - highest);
        if (rank_among(own, k, chosen[i]) < 0) lost -= std::exp(double(z[chosen[i]]) - highest);
    }
    return lost / total;
}

route_policy route_policy_of(const engine_spec & spec, int layer) {
    route_policy policy;
    if (layer < spec.first_biased_layer) return policy;
    policy.routing = spec.routing;
    policy.lambda = spec.lambdas.empty() ? spec.lambda : spec.lambdas[size_t(layer)];
    policy.top_j = spec.top_js.empty() ? spec.top_j : spec.top_js[size_t(layer)];
    policy.max_rank = spec.max_rank;
    policy.mass_threshold = spec.mass_threshold;
    policy.rank = spec.rank;
    policy.seed = spec.seed;
    return policy;
}

// The methods: each fills `chosen` from the model's own `ids`, given k finite scores or more.

static void choose_by_prior(const route_policy & policy, const route_input & in, const int32_t * ids, int k, int32_t * chosen) {
    const float bonus = float(policy.lambda * in.delta);
    float score[ROUTE_MAX_K];
    int order[ROUTE_MAX_K];  // breaks ties: the model's rank, or k + index outside its top-K
    int found = 0;
    for (int e = 0; e < in.experts; e++) {
        if (!std::isfinite(in.z[e])) continue;
        const int own_rank = rank_among(ids, k, e);
        const bool kept = in.resident[e] || (own_rank >= 0 && own_rank < policy.top_j);
        const float s = kept ? in.z[e] + bonus : in.z[e];
        const int o = own_rank >= 0 ? own_rank : k + e;
        int at = found;
        while (at > 0 && (s > score[at - 1] || (s == score[at - 1] && o < order[at - 1]))) at--;
        if (at == k) continue;
        if (found < k) found++;
        for (int i = found - 1; i > at; i--) {
            chosen[i] = chosen[i - 1];
            score[i] = score[i - 1];
            order[i] = order[i - 1];
        }
        chosen[at] = e;
        score[at] = s;
        order[at] = o;
    }
}

// So few are found faster one by one than by selecting and sorting.
static const int FOUND_ONE_BY_ONE = 16;

// The best of those outside the model's own choice into `out[room]`, by falling score, then by index; returns how many there are in all.
static int best_others(const route_input & in, const int32_t * ids, int k, int room, int32_t * out) {
    int found = 0, others = 0;
    for (int e = 0; e < in.experts; e++) {
        if (!std::isfinite(in.z[e]) || rank_among(ids, k, e) >= 0) continue;
        others++;
        if (found == room && !(room > 0 && in.z[e] > in.z[out[room - 1]])) continue;
        int at = found < room ? found++ : room - 1;
        for (; at > 0 && in.z[e] > in.z[out[at - 1]]; at--) out[at] = out[at - 1];
        out[at] = e;
    }
    return others;
}

// The experts in `in.ranking`, the first `wanted` of them by rank; what follows those means nothing. Returns how many there are.
static int rank_first(const route_input & in, const int32_t * ids, int k, int wanted) {
    std::copy(ids, ids + k, in.ranking);
    if (wanted - k <= FOUND_ONE_BY_ONE) return k + best_others(in, ids, k, std::max(0, wanted - k), in.ranking + k);
    int n = k;
    for (int e = 0; e < in.experts; e++) {
        if (std::isfinite(in.z[e]) && rank_among(ids, k, e) < 0) in.ranking[n++] = e;
    }
    const float * z = in.z;
    const auto before = [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
    int32_t * const end = in.ranking + std::min(wanted, n);
    std::nth_element(in.ranking + k, end, in.ranking + n, before);
    std::sort(in.ranking + k, end, before);
    return n;
}

// Length of the shortest prefix of the ranking that holds at least `threshold` of the softmax mass. Both sums run in the
// same order, so that a threshold of 1 is reached.
static int prefix_of_mass(const route_input & in, int ranked, double threshold) {
    float highest = in.z[in.ranking[0]];
    for (int i = 1; i < ranked; i++) highest = std::max(highest, in.z[in.ranking[i]]);
    double total = 0, held = 0;
    for (int i = 0; i < ranked; i++) total += std::exp(double(in.z[in.ranking[i]]) - highest);
    int n = 0;
    while (n < ranked && held < threshold * total) held += std::exp(double(in.z[in.ranking[n++]]) - highest);
    return n;
}

static void choose_by_rank(const route_policy & policy, const route_input & in, const int32_t * ids, int k, int32_t * chosen) {
    const bool by_mass = policy.routing == ROUTING_CUMULATIVE_THRESHOLD;
    // Of ranks from M on none is selected: those below are K or more, and fill all slots.
    const int ranked = rank_first(in, ids, k, by_mass ? in.experts : policy.max_rank);
    const int within = by_mass ? prefix_of_mass(in, ranked, policy.mass_threshold) : std::min(policy.max_rank, ranked);
    int residents = 0;
    for (int i = policy.top_j; i < within; i++) residents += in.resident[in.ranking[i]];
    residents = std::min(residents, k - policy.top_j);
    int rest = k - policy.top_j - residents;
    int found = 0;
    for (int i = 0; found < k; i++) {
        const int32_t e = in.ranking[i];
        const bool preferred = i < within && in.resident[e];
        if (i < policy.top_j || (preferred ? residents-- > 0 : rest-- > 0)) chosen[found++] = e;
    }
}

// Returns how many are left.
static int choose_pruned(const route_policy & policy, const route_input & in, const int32_t * ids, int k, int32_t * chosen) {
    int kept = 0;
    for (int i = 0; i < k; i++) {
        if (i < policy.top_j || in.resident[ids[i]]) chosen[kept++] = ids[i];
    }
    for (int i = kept; i < k; i++) chosen[i] = chosen[0];
    return kept;
}

// SplitMix64 (Steele, Lea and Flood 2014): consecutive inputs give unrelated outputs.
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void choose_at_random(const route_policy & policy, const route_input & in, const int32_t * ids, int k, int32_t * chosen) {
    int others = 0;
    for (int e = 0; e < in.experts; e++) {
        if (std::isfinite(in.z[e]) && rank_among(ids, k, e) < 0) in.ranking[others++] = e;
    }
    for (int i = 0; i < k; i++) chosen[i] = ids[i];
    if (others == 0) return;
    const uint64_t draw = mix(mix(mix(policy.seed) + uint64_t(in.layer)) + in.token);
    chosen[policy.rank - 1] = in.ranking[draw % uint64_t(others)];
}

static bool has_finite(const route_input & in, int k) {
    int n = 0;
    for (int e = 0; e < in.experts && n < k; e++) n += std::isfinite(in.z[e]);
    return n == k;
}

route_outcome route_select(const route_policy & policy, const route_input & in, int32_t * ids, int k) {
    route_outcome outcome;
    outcome.kept = k;
    const bool by_prior = policy.routing == ROUTING_CACHE_PRIOR;
    if (policy.routing == ROUTING_ORIGINAL || (by_prior && policy.lambda == 0) || k > ROUTE_MAX_K || !has_finite(in, k)) return outcome;

    int32_t chosen[ROUTE_MAX_K];
    switch (policy.routing) {
        case ROUTING_ORIGINAL: return outcome;
        case ROUTING_CACHE_PRIOR: choose_by_prior(policy, in, ids, k, chosen); break;
        case ROUTING_MAX_RANK:
        case ROUTING_CUMULATIVE_THRESHOLD: choose_by_rank(policy, in, ids, k, chosen); break;
        case ROUTING_PRUNED: outcome.kept = choose_pruned(policy, in, ids, k, chosen); break;
        case ROUTING_SENSITIVITY: choose_at_random(policy, in, ids, k, chosen); break;
    }
    for (int i = 0; i < outcome.kept; i++) {
        if (rank_among(ids, k, chosen[i]) < 0) outcome.swaps++;
    }
    if (outcome.swaps > 0 || outcome.kept < k) outcome.mass_lost = mass_lost(in.z, in.experts, ids, chosen, k);
    for (int i = 0; i < k; i++) ids[i] = chosen[i];
    return outcome;
}

void route_drop_weights(float * weights, int kept, int k, bool softmax_follows) {
    for (int i = kept; i < k; i++) weights[i] = softmax_follows ? -INFINITY : 0;
}
