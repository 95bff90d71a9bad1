// A recorded run through the very routing and cache that the engine runs, under other settings than it was recorded with:
// what each would have missed and swapped. Every layer begins with an empty cache.
//
// It is open-loop. A setting that bends the router changes what the layers compute, hence what later routers say, and the
// record knows only what they said when it was made. Where nothing is bent there is nothing to change, and the misses are
// exactly the engine's.
//
// The bound on eviction is Belady's (1966), by whole events: the expert whose next use is furthest away leaves, and never
// one that the event selects. It is the only policy here that is told the future. An event's experts must be present
// together, so keeping them is no choice; among the others, exchanging the one with the furthest next use for any other
// never saves a miss. Two whose next use is the same event are worth the same: each is one miss there, and whichever
// leaves first, both are members after it. It holds for choices that do not depend on the cache, so not under a pull.
#include "engine-state.h"
#include "layer-state.h"
#include "route-trace.h"
#include "score-block.h"
#include "status.h"

#include <algorithm>
#include <cmath>

namespace {

// Whether a spec leaves every layer the model's own choice.
bool bends_nothing(const engine_spec & spec, size_t layers) {
    for (size_t l = 0; l < layers; l++) {
        const route_policy policy = route_policy_of(spec, int(l));
        const bool own = policy.routing == ROUTING_ORIGINAL || (policy.routing == ROUTING_CACHE_PRIOR && policy.lambda == 0);
        if (!own) return false;
    }
    return true;
}

// The model that a spec is checked against: that of the trace.
model_info model_of(const route_trace & trace) {
    model_info info;
    info.experts = trace.experts;
    info.top_k = trace.top_k;
    for (size_t l = 0; l < trace.layer_events.size(); l++) info.moe_layers.push_back(int32_t(l));
    info.expert_bytes.assign(trace.layer_events.size(), 0);
    return info;
}

engine_status check_what_if(const route_trace & trace, const engine_spec & spec) {
    const bool own = bends_nothing(spec, trace.layer_events.size());
    engine_spec as_device = spec;
    if (spec.eviction == EVICT_BELADY) {
        if (!own) {
            return status_error(ENGINE_BAD_ARGUMENT, "eviction: 'belady' is told which experts come, and a routing that follows the cache changes "
                                "that; use it with lambda 0");
        }
        as_device.eviction = EVICT_LRU;
    }
    const engine_status status = engine_check_spec(model_of(trace), as_device);
    if (failed(status) || own || route_trace_has_scores(trace)) return status;
    return status_error(ENGINE_BAD_ARGUMENT, "routing: the trace holds the chosen experts and not the router's scores, so it can only be replayed at "
                        "lambda 0; record router windows for anything else");
}

// For every slot of a layer's events the clock of the same expert's next event; infinite where there is none.
void find_next_uses(const route_trace & trace, const int32_t * routes, int32_t events, std::vector<double> & next) {
    std::vector<double> upcoming(size_t(trace.experts), INFINITY);
    next.resize(size_t(events) * size_t(trace.top_k));
    for (int64_t t = int64_t(events) - 1; t >= 0; t--) {
        const int32_t * ids = routes + t * trace.top_k;
        const int used = route_trace_used(ids, trace.top_k);
        for (int i = 0; i < used; i++) next[size_t(t * trace.top_k + i)] = upcoming[size_t(ids[i])];
        for (int i = 0; i < used; i++) upcoming[size_t(ids[i])] = double(t + 1);
    }
}

// Without scores, used experts share one probability, as the predictor assumes of the layer itself.
void scores_of_used(const int32_t * ids, int used, std::vector<float> & scores) {
    std::fill(scores.begin(), scores.end(), -INFINITY);
    for (int i = 0; i < used; i++) scores[size_t(ids[i])] = 0;
}

// The changes of one layer's capacity, taken as its events go by.
struct change_cursor {
    const std::vector<cache_change> & all;
    int32_t layer;
    size_t next = 0;
    void apply_before(int64_t event, expert_cache & cache, std::vector<int32_t> & evicted) {
        for (; next < all.size(); next++) {
            if (all[next].layer != layer) continue;
            if (all[next].event > event) return;
            if (all[next].warmed >= 0) expert_cache_warm(cache, all[next].warmed);
            else expert_cache_resize(cache, all[next].capacity, evicted.data());
        }
    }
};

struct replay_run {
    const route_trace & trace;
    const std::vector<int32_t> & choices;  // the model's own, layer by layer
    int32_t uncounted;
    // scratch, `experts` long
    std::vector<float> here, below;
    std::vector<int32_t> ranking, left;
    score_block scores;
};

// What the routers said of one event. Only the adaptive policy looks at more than this layer's scores.
reuse_scores scores_of(replay_run & run, int layer, const int32_t * below, int64_t event, bool adaptive) {
    reuse_scores scores;
    if (route_trace_has_scores(run.trace)) {
        if (adaptive) return score_block_of(run.scores, event);
        scores.here = route_trace_scores(run.trace, layer, event, run.here.data());
    } else if (adaptive && below) {
        const int32_t * ids = below + event * run.trace.top_k;
        scores_of_used(ids, route_trace_used(ids, run.trace.top_k), run.below);
        scores.below = run.below.data();
    }
    return scores;
}

// One layer on its way through its events.
struct layer_run {
    const int32_t * routes;  // the layer's own
    const int32_t * below;   // those of the layer before, null where there are not as many
    change_cursor changes;
    std::vector<double> next_uses;  // under EVICT_BELADY
};

void replay_events(replay_run & run, const engine_spec & spec, layer_state & state, layer_run & at, int layer, int64_t from, int64_t to) {
    const int k = run.trace.top_k;
    const route_policy policy = route_policy_of(spec, layer);
    const bool adaptive = spec.eviction == EVICT_ADAPTIVE;
    if (adaptive && route_trace_has_scores(run.trace)) score_block_take(run.scores, run.trace, layer, from, to);
    int32_t ids[ROUTE_MAX_K], missed[ROUTE_MAX_K], evicted[ROUTE_MAX_K];
    for (int64_t t = from; t < to; t++) {
        const int32_t * own = at.routes + t * k;
        const int used = route_trace_used(own, k);
        std::copy(own, own + used, ids);
        at.changes.apply_before(t, state.cache, run.left);
        for (int i = 0; i < used && !at.next_uses.empty(); i++) state.cache.next_use[size_t(ids[i])] = at.next_uses[size_t(t * k + i)];
        cache_event event{0, 0, 0, missed, evicted};
        const reuse_scores scores = scores_of(run, layer, at.below, t, adaptive);
        const route_outcome routed = layer_state_route(state, layer, &policy, scores, ids, used, run.ranking.data(), event);
        if (t >= run.uncounted) layer_state_count(state, routed, event, used);
    }
}

std::vector<layer_run> begin_layers(const replay_run & run, const engine_spec & spec) {
    std::vector<layer_run> out;
    const int32_t * routes = run.choices.data();
    int32_t events_below = -1;
    for (int l = 0; l < int(run.trace.layer_events.size()); l++) {
        const int32_t events = run.trace.layer_events[size_t(l)];
        const int64_t slots = int64_t(events) * run.trace.top_k;
        out.push_back({routes, events == events_below ? routes - slots : nullptr, {run.trace.changes, l}, {}});
        if (spec.eviction == EVICT_BELADY) find_next_uses(run.trace, routes, events, out.back().next_uses);
        routes += slots;
        events_below = events;
    }
    return out;
}

replayed_layer counts_of(const layer_state & state) {
    const layer_tally & tally = state.tally;
    return {tally.events.get(), tally.hits.get(), tally.misses.get(), tally.swaps.get(), tally.dropped.get(), tally.mass_lost.get(),
            int64_t(state.cache.evictions), int64_t(state.cache.lifetime_tokens)};
}

// A few events of all layers, then the next few: what the predictor makes of a layer's scores is at hand for the layer above, and what
// a layer has learned stays near meanwhile.
std::vector<replayed_layer> replay_what_if(replay_run & run, const engine_spec & spec) {
    layer_states states;
    layer_states_init(states, run.trace.experts, spec);
    std::vector<layer_run> layers = begin_layers(run, spec);
    int64_t most = 0;
    for (const int32_t events : run.trace.layer_events) most = std::max(most, int64_t(events));
    for (int64_t from = 0; from < most; from += SCORE_BLOCK) {
        for (int l = 0; l < states.count; l++) {
            const int64_t to = std::min(from + SCORE_BLOCK, int64_t(run.trace.layer_events[size_t(l)]));
            replay_events(run, spec, states[l], layers[size_t(l)], l, from, to);
        }
    }
    std::vector<replayed_layer> out;
    for (int l = 0; l < states.count; l++) out.push_back(counts_of(states[l]));
    return out;
}

engine_status check_request(const replay_request & r) {
    engine_status status = route_trace_check(r.trace);
    if (!failed(status) && r.uncounted < 0) status = status_error(ENGINE_BAD_ARGUMENT, "uncounted: expected 0 or more tokens, found %d", r.uncounted);
    for (size_t i = 0; i < r.what_ifs.size() && !failed(status); i++) status = check_what_if(r.trace, r.what_ifs[i]);
    return status;
}

engine_status replay(const replay_request & r, const progress_callback & progress, replay_result & out) {
    engine_status status = check_request(r);
    std::vector<int32_t> choices;
    if (!failed(status)) status = route_trace_choices(r.trace, choices);
    if (failed(status)) return status;
    const size_t experts = size_t(r.trace.experts);
    replay_run run{r.trace, choices, r.uncounted, std::vector<float>(experts), std::vector<float>(experts), std::vector<int32_t>(experts),
                   std::vector<int32_t>(experts), score_block(r.trace.experts)};
    out = replay_result();
    for (size_t i = 0; i < r.what_ifs.size(); i++) {
        if (progress && !progress(int64_t(i), int64_t(r.what_ifs.size()))) return status_error(ENGINE_CANCELLED, "the replay was cancelled");
        out.what_ifs.push_back(replay_what_if(run, r.what_ifs[i]));
    }
    return {};
}

}  // namespace

engine_status engine_replay(const replay_request & request, const progress_callback & progress, replay_result & out) {
    try {
        return replay(request, progress, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "replay: %s", error.what());
    }
}
