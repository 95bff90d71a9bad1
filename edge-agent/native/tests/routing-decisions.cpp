// routing_decisions LOGITS OUTPUT: what the engine decides on recorded router logits, under every routing method and
// eviction policy, each from an empty cache. Built for each processor that bundles are made for: the outputs must be the
// same bytes, so that a spec means the same on all devices of a fleet.
//
// LOGITS: int32 tokens, layers, experts, k; float32 [tokens][layers][experts]. OUTPUT: for each policy, token and layer
// the k ids selected, then those evicted, -1 where fewer were; int32.
#include "expert-cache.h"
#include "routing.h"

#include <algorithm>
#include <cstdio>
#include <vector>

struct recording {
    int32_t tokens = 0, layers = 0, experts = 0, k = 0;
    std::vector<float> z;
};

static bool read_recording(const char * path, recording & r) {
    FILE * in = fopen(path, "rb");
    if (!in) return false;
    int32_t head[4];
    bool ok = fread(head, sizeof(int32_t), 4, in) == 4;
    for (int32_t value : head) ok = ok && value > 0 && value < 100000;
    if (ok) {
        r.tokens = head[0]; r.layers = head[1]; r.experts = head[2]; r.k = head[3];
        r.z.resize(size_t(r.tokens) * size_t(r.layers) * size_t(r.experts));
        ok = r.k <= ROUTE_MAX_K && r.k * 2 <= r.experts && fread(r.z.data(), sizeof(float), r.z.size(), in) == r.z.size();
    }
    fclose(in);
    return ok;
}

// The k largest, ties by index, as the model's own top-K.
static void own_choice(const float * z, const recording & r, std::vector<int32_t> & order, int32_t * ids) {
    for (int e = 0; e < r.experts; ++e) order[size_t(e)] = e;
    std::stable_sort(order.begin(), order.end(), [z](int32_t a, int32_t b) { return z[a] > z[b]; });
    std::copy_n(order.begin(), r.k, ids);
}

static bool decide(const recording & r, const route_policy & policy, engine_eviction eviction, FILE * out) {
    std::vector<expert_cache> caches(size_t(r.layers));
    std::vector<range_mean> ranges(size_t(r.layers));
    for (expert_cache & cache : caches) {
        expert_cache_init(cache, r.experts, r.experts / 2);
        expert_cache_evict_by(cache, eviction, 0);
    }
    std::vector<int32_t> order(size_t(r.experts)), ranking(size_t(r.experts)), row(size_t(r.k) * 2), missed(size_t(r.k));
    for (int t = 0; t < r.tokens; ++t) {
        const float * below = nullptr;
        for (int l = 0; l < r.layers; ++l) {
            const float * z = &r.z[(size_t(t) * size_t(r.layers) + size_t(l)) * size_t(r.experts)];
            expert_cache & cache = caches[size_t(l)];
            std::fill(row.begin(), row.end(), -1);
            own_choice(z, r, order, row.data());
            range_mean_add(ranges[size_t(l)], route_range(z, r.experts));
            const route_input in = {z, r.experts, cache.resident.data(), range_mean_value(ranges[size_t(l)]), l, uint64_t(t) + 1, ranking.data()};
            const route_outcome outcome = route_select(policy, in, row.data(), r.k);
            cache_event event = {0, 0, 0, missed.data(), row.data() + r.k};
            expert_cache_event(cache, row.data(), outcome.kept, event, {z, below});
            if (fwrite(row.data(), sizeof(int32_t), row.size(), out) != row.size()) return false;
            below = z;
        }
    }
    return true;
}

int main(int argc, char ** argv) {
    recording r;
    if (argc != 3 || !read_recording(argv[1], r)) return fprintf(stderr, "usage: routing_decisions LOGITS OUTPUT; LOGITS must be a recording\n"), 2;
    FILE * out = fopen(argv[2], "wb");
    if (!out) return perror(argv[2]), 1;
    std::vector<route_policy> policies;
    for (double lambda : {0.0, 0.1, 0.2, 0.5, 1.0}) {
        route_policy policy;
        policy.routing = ROUTING_CACHE_PRIOR; policy.lambda = lambda; policy.top_j = 1;
        policies.push_back(policy);
    }
    for (engine_routing routing : {ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED, ROUTING_SENSITIVITY}) {
        route_policy policy;
        policy.routing = routing; policy.top_j = 1; policy.max_rank = std::min(r.experts, 2 * r.k); policy.mass_threshold = 0.7; policy.rank = 2; policy.seed = 7;
        policies.push_back(policy);
    }
    bool ok = true;
    for (const route_policy & policy : policies)
        for (engine_eviction eviction : {EVICT_LRU, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE}) ok = ok && decide(r, policy, eviction, out);
    if (fclose(out) != 0 || !ok) return perror(argv[2]), 1;
    return 0;
}
