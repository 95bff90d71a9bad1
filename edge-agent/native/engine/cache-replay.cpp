// A recorded sequence of routing events through the very cache that the engine runs: what each policy would have missed,
// and what no policy could have avoided.
//
// The bound is Belady's (1966), by whole events: the expert whose next use is furthest away leaves, and never one that
// the event selects. It is the only policy here that is told the future. An event's experts must be present together, so
// keeping them is no choice; among the others, exchanging the one with the furthest next use for any other never saves a
// miss. Two whose next use is the same event are worth the same: each is one miss there, and whichever leaves first,
// both are members after it.
#include "expert-cache.h"
#include "routing.h"
#include "status.h"

#include <algorithm>
#include <cmath>

namespace {

const int32_t MOST_EXPERTS = 65536;

// Experts of the event at `ids`: those before the first -1.
int used_of(const int32_t * ids, int k) {
    int n = 0;
    while (n < k && ids[n] >= 0) n++;
    return n;
}

engine_status check_event(const simulate_request & r, int64_t event) {
    const int32_t * ids = r.routes.data() + event * r.top_k;
    const int used = used_of(ids, r.top_k);
    for (int i = 0; i < r.top_k; i++) {
        const bool good = i < used ? ids[i] < r.experts : ids[i] == -1;
        if (!good) {
            return status_error(ENGINE_BAD_ARGUMENT, "routes: event %lld, slot %d: expected an expert from 0 to %d, or -1 from there to "
                                "the end, found %d", (long long) event, i, r.experts - 1, ids[i]);
        }
        for (int j = 0; j < i && i < used; j++) {
            if (ids[j] == ids[i]) {
                return status_error(ENGINE_BAD_ARGUMENT, "routes: event %lld selects expert %d twice", (long long) event, ids[i]);
            }
        }
    }
    return {};
}

engine_status check_sizes(const simulate_request & r) {
    if (r.experts < 1 || r.experts > MOST_EXPERTS) {
        return status_error(ENGINE_BAD_ARGUMENT, "experts: expected 1 to %d, found %d", MOST_EXPERTS, r.experts);
    }
    if (r.top_k < 1 || r.top_k > ROUTE_MAX_K) {
        return status_error(ENGINE_BAD_ARGUMENT, "topK: expected 1 to %d, found %d", ROUTE_MAX_K, r.top_k);
    }
    if (r.capacity < r.top_k) {
        return status_error(ENGINE_CAPACITY, "capacity: %d is below the %d experts one token needs; use %d or more", r.capacity, r.top_k,
                            r.top_k);
    }
    if (!(r.half_life >= 0) || !std::isfinite(r.half_life)) {
        return status_error(ENGINE_BAD_ARGUMENT, "halfLifeTokens: expected 0 (uses do not age) or a number of tokens, found %g", r.half_life);
    }
    int64_t events = 0;
    const int64_t given = int64_t(r.routes.size()) / r.top_k;
    for (const int32_t n : r.layer_events) {
        if (n < 0 || n > given - events) return status_error(ENGINE_BAD_ARGUMENT, "layerEvents: more events than routes holds");
        events += n;
    }
    if (events * r.top_k != int64_t(r.routes.size())) {
        return status_error(ENGINE_BAD_ARGUMENT, "routes: expected %lld events of %d experts, found %zu ids", (long long) events, r.top_k,
                            r.routes.size());
    }
    return {};
}

engine_status check_changes(const simulate_request & r) {
    std::vector<int32_t> latest(r.layer_events.size(), 0);
    for (size_t i = 0; i < r.changes.size(); i++) {
        const capacity_change & c = r.changes[i];
        if (c.layer < 0 || size_t(c.layer) >= latest.size()) {
            return status_error(ENGINE_BAD_ARGUMENT, "changes: entry %zu is of layer %d of %zu", i, c.layer, latest.size());
        }
        if (c.event < latest[size_t(c.layer)] || c.event > r.layer_events[size_t(c.layer)]) {
            return status_error(ENGINE_BAD_ARGUMENT, "changes: entry %zu stands before event %d of layer %d; expected %d to %d, in the order of events",
                                i, c.event, c.layer, latest[size_t(c.layer)], r.layer_events[size_t(c.layer)]);
        }
        latest[size_t(c.layer)] = c.event;
        if (c.capacity >= r.top_k) continue;
        return status_error(ENGINE_CAPACITY, "changes: capacity %d of entry %zu is below the %d experts one token needs; use %d or more", c.capacity, i,
                            r.top_k, r.top_k);
    }
    return {};
}

engine_status check_request(const simulate_request & r) {
    engine_status status = check_sizes(r);
    if (!failed(status)) status = check_changes(r);
    if (failed(status)) return status;
    const int64_t events = int64_t(r.routes.size()) / r.top_k;
    for (int64_t i = 0; i < events && !failed(status); i++) status = check_event(r, i);
    return status;
}

// For every slot of a layer's events the clock of the same expert's next event; infinite where there is none.
void find_next_uses(const simulate_request & r, const int32_t * routes, int32_t events, std::vector<double> & next) {
    std::vector<double> upcoming(size_t(r.experts), INFINITY);
    next.resize(size_t(events) * size_t(r.top_k));
    for (int64_t t = int64_t(events) - 1; t >= 0; t--) {
        const int32_t * ids = routes + t * r.top_k;
        const int used = used_of(ids, r.top_k);
        for (int i = 0; i < used; i++) next[size_t(t * r.top_k + i)] = upcoming[size_t(ids[i])];
        for (int i = 0; i < used; i++) upcoming[size_t(ids[i])] = double(t + 1);
    }
}

// A route has no scores; used experts share one probability, as the predictor assumes of the layer itself.
void scores_of_used(const int32_t * ids, int used, std::vector<float> & scores) {
    std::fill(scores.begin(), scores.end(), -INFINITY);
    for (int i = 0; i < used; i++) scores[size_t(ids[i])] = 0;
}

// The changes of one layer's capacity, taken as its events go by.
struct change_cursor {
    const std::vector<capacity_change> & all;
    int32_t layer;
    size_t next = 0;
    void apply_before(int64_t event, expert_cache & cache, std::vector<int32_t> & evicted) {
        for (; next < all.size(); next++) {
            if (all[next].layer != layer) continue;
            if (all[next].event > event) return;
            expert_cache_resize(cache, all[next].capacity, evicted.data());
        }
    }
};

// `below`: the events of the layer before, null where there are not as many.
simulated_layer replay_layer(const simulate_request & r, int32_t index, const int32_t * routes, const int32_t * below, int32_t events) {
    expert_cache cache;
    expert_cache_init(cache, r.experts, r.capacity);
    expert_cache_evict_by(cache, r.eviction, r.half_life);
    std::vector<double> next;
    if (r.eviction == EVICT_BELADY) find_next_uses(r, routes, events, next);

    simulated_layer layer;
    change_cursor changes{r.changes, index};
    std::vector<int32_t> left(size_t(r.experts));
    std::vector<float> scores(size_t(r.experts));
    int32_t missed[ROUTE_MAX_K], evicted[ROUTE_MAX_K];
    for (int64_t t = 0; t < events; t++) {
        const int32_t * ids = routes + t * r.top_k;
        const int used = used_of(ids, r.top_k);
        changes.apply_before(t, cache, left);
        for (int i = 0; i < used && !next.empty(); i++) cache.next_use[size_t(ids[i])] = next[size_t(t * r.top_k + i)];
        cache_event event{0, 0, 0, missed, evicted};
        reuse_scores known;
        if (below && r.eviction == EVICT_ADAPTIVE) {
            scores_of_used(below + t * r.top_k, used_of(below + t * r.top_k, r.top_k), scores);
            known.below = scores.data();
        }
        expert_cache_event(cache, ids, used, event, known);
        layer.references += used;
        layer.misses += event.misses;
    }
    return layer;
}

engine_status replay(const simulate_request & r, simulate_result & out) {
    const engine_status status = check_request(r);
    if (failed(status)) return status;
    out = simulate_result();
    const int32_t * routes = r.routes.data();
    int32_t events_below = -1, index = 0;
    for (const int32_t events : r.layer_events) {
        const int64_t slots = int64_t(events) * r.top_k;
        out.layers.push_back(replay_layer(r, index++, routes, events == events_below ? routes - slots : nullptr, events));
        routes += slots;
        events_below = events;
    }
    return {};
}

}  // namespace

engine_status engine_simulate(const simulate_request & request, simulate_result & out) {
    try {
        return replay(request, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "simulate: %s", error.what());
    }
}
