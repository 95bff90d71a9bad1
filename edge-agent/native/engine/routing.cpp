#include "routing.h"

#include "best-first.h"
#include "score-row.h"
#include "widest-vectors.h"

#include <algorithm>
#include <cmath>

float route_range(const float * z, int experts) {
    const score_extent found = score_row_extent(z, experts);
    return found.highest >= found.lowest ? found.highest - found.lowest : 0;
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
    const float highest = score_row_extent(z, experts).highest;
    double lost = 0;
    for (int i = 0; i < k; i++) {
        if (rank_among(chosen, k, own[i]) < 0) lost += score_mass(z[own[i]], highest);
        if (rank_among(own, k, chosen[i]) < 0) lost -= score_mass(z[chosen[i]], highest);
    }
    return lost / score_row_mass(z, experts, highest);
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

// Candidates by falling score; of equals the one that came first.
struct best_few {
    const int room;
    int found = 0;
    float score[ROUTE_MAX_K];

    explicit best_few(int room) : room(room) {}
    // What a newcomer must exceed.
    float least() const { return found == room ? score[room - 1] : -INFINITY; }
    void add(float s, int32_t e, int32_t * chosen) {
        if (found == room && s <= score[room - 1]) return;
        int at = found < room ? found++ : room - 1;
        for (; at > 0 && s > score[at - 1]; at--) {
            score[at] = score[at - 1];
            chosen[at] = chosen[at - 1];
        }
        score[at] = s;
        chosen[at] = e;
    }
};

enum { WORD = 32 };

// A bit for each of `n` experts, at most a word of them, whose score with the bonus of residents exceeds `least`.
WIDEST_VECTORS static uint32_t exceeding(const float * __restrict z, const uint8_t * __restrict resident, int n, float bonus, float least) {
    uint32_t bits = 0;
    if (n == WORD) {
        for (int i = 0; i < WORD; i++) bits |= z[i] + (resident[i] ? bonus : 0) > least ? uint32_t(1) << i : 0;
    } else {
        for (int i = 0; i < n; i++) bits |= z[i] + (resident[i] ? bonus : 0) > least ? uint32_t(1) << i : 0;
    }
    return bits;
}

static void choose_by_prior(const route_policy & policy, const route_input & in, const int32_t * ids, int k, int32_t * chosen) {
    const float bonus = float(policy.lambda * in.delta);
    best_few best(k);
    for (int i = 0; i < k; i++) {
        const float z = in.z[ids[i]];
        if (std::isfinite(z)) best.add(in.resident[ids[i]] || i < policy.top_j ? z + bonus : z, ids[i], chosen);
    }
    // Few others reach the last of the model's own.
    for (int from = 0; from < in.experts; from += WORD) {
        uint32_t others = exceeding(in.z + from, in.resident + from, std::min(int(WORD), in.experts - from), bonus, best.least());
        for (int i = 0; i < k; i++) others &= ~(uint32_t(unsigned(ids[i] - from) < WORD) << (ids[i] % WORD));
        for (; others != 0; others &= others - 1) {
            const int e = from + __builtin_ctz(others);
            if (std::isfinite(in.z[e])) best.add(in.resident[e] ? in.z[e] + bonus : in.z[e], e, chosen);
        }
    }
}

// The experts outside the model's own choice, best first, one at a time.
static void begin_others(const route_input & in, const int32_t * ids, int k) {
    best_first_begin(in.z, in.experts, in.ranking);
    for (int i = 0; i < k; i++) in.ranking[ids[i]] = BEST_FIRST_NONE;
}

// Tells, rank by rank, whether a rank lies within M, which `cumulative_threshold` finds as it goes.
struct rank_limit {
    int max_rank = 0;
    bool by_mass = false;
    float highest = 0;
    double wanted = 0, held = 0;  // masses

    bool allows(int rank) const { return by_mass ? held < wanted : rank < max_rank; }
    void pass(float z) {
        if (by_mass) held += score_mass(z, highest);
    }
};

static rank_limit limit_of(const route_policy & policy, const route_input & in) {
    rank_limit limit;
    limit.max_rank = policy.max_rank;
    limit.by_mass = policy.routing == ROUTING_CUMULATIVE_THRESHOLD;
    if (!limit.by_mass) return limit;
    limit.highest = score_row_extent(in.z, in.experts).highest;
    limit.wanted = policy.mass_threshold * score_row_mass(in.z, in.experts, limit.highest);
    return limit;
}

// Residents are taken where they are found, up to the slots that topJ leaves; what they leave goes to the model's own, of which there
// are enough, so none but residents is ever taken from outside of those.
static void choose_by_rank(const route_policy & policy, const route_input & in, const int32_t * ids, int k, int32_t * chosen) {
    rank_limit limit = limit_of(policy, in);
    const int open = k - policy.top_j;
    bool preferred[ROUTE_MAX_K] = {};
    int residents = 0;
    for (int i = 0; i < k && limit.allows(i); i++) {
        limit.pass(in.z[ids[i]]);
        preferred[i] = i >= policy.top_j && in.resident[ids[i]];
        residents += preferred[i];
    }
    int32_t outside[ROUTE_MAX_K];
    int taken = 0;
    if (residents < open && limit.allows(k)) begin_others(in, ids, k);
    for (int i = k; residents + taken < open && limit.allows(i); i++) {
        const int e = best_first_next(in.ranking, in.experts);
        if (e < 0) break;
        limit.pass(in.z[e]);
        if (in.resident[e]) outside[taken++] = e;
    }
    int rest = open - residents - taken, found = 0;
    for (int i = 0; i < k; i++) {
        if (i < policy.top_j || preferred[i] || rest-- > 0) chosen[found++] = ids[i];
    }
    for (int i = 0; i < taken; i++) chosen[found++] = outside[i];
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
    begin_others(in, ids, k);
    int others = 0;
    for (int e = 0; e < in.experts; e++) {
        const bool is_one = in.ranking[e] != BEST_FIRST_NONE;
        in.ranking[others] = e;
        others += is_one;
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
    std::copy(chosen, chosen + k, ids);
    return outcome;
}

void route_drop_weights(float * weights, int kept, int k, bool softmax_follows) {
    for (int i = kept; i < k; i++) weights[i] = softmax_follows ? -INFINITY : 0;
}
