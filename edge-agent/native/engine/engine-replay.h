// The engine's interface, part three: recorded runs, and replaying them under other settings. Needs no engine that is open. As in
// engine.h.
#pragma once

#include "engine-values.h"

// A layer's capacity became another before the layer's routing event `event`, 0 being its first: by a spec, or under
// pressure. Whoever no longer fits leaves there and then. Or, with `warmed` an expert: a warm fill admitted it there, and the
// capacity stayed what it was.
struct cache_change { int32_t layer, event, capacity, warmed = -1; };

// A recorded run: what the routers said of every token (`scores` or `rows`), or only what they chose (`routes`). Scores are
// token by token, every layer of each, so all layers have as many events; routes are layer by layer. At least one of the
// three is there; where scores come without routes, the model chose the top_k largest of them, ties by index.
struct route_trace {
    int32_t experts = 0;
    int32_t top_k = 0;
    std::vector<int32_t> layer_events;  // routing events of each layer
    std::vector<int32_t> routes;        // events x top_k experts, best ranked first, -1 in slots that were not used
    std::vector<float> scores;          // tokens x layers x experts; not finite: masked
    std::vector<uint8_t> rows;          // the same at a byte each: float minimum, float step, then `experts` levels to a row; see route-trace.h
    bool rows_mask = false;             // level 255 means masked; otherwise it is a level like the others
    std::vector<cache_change> changes;  // `layer` counting as in `layer_events`, a layer's in the order of events
};

// Each of `what_ifs` runs through the trace from an empty cache; its eviction may be EVICT_BELADY where nothing is bent.
struct replay_request {
    route_trace trace;
    std::vector<engine_spec> what_ifs;
    int32_t uncounted = 0;              // that many tokens, from the first, fill the caches and are not counted
};
struct replayed_layer {
    int64_t events = 0, hits = 0, misses = 0, swaps = 0, dropped = 0;
    double mass_lost = 0;               // sum over events
    int64_t evictions = 0, lifetime_tokens = 0;  // and the sum of their tokens from admission to eviction; of all events
};
struct replay_result { std::vector<std::vector<replayed_layer>> what_ifs; };

// LRU at the model's own choice, at every capacity from 0 to `experts` at once; see lru-curve.cpp. Entries of capacities below
// the trace's top_k mean nothing.
struct lru_curve_layer {
    int64_t references = 0;
    std::vector<int64_t> misses, evictions, lifetime_tokens;  // experts + 1 entries each
};
struct lru_curve { std::vector<lru_curve_layer> layers; };

// See replay.cpp. BAD_ARGUMENT, CAPACITY, CANCELLED.
engine_status engine_replay(const replay_request & request, const progress_callback & progress, replay_result & out);
engine_status engine_lru_curve(const route_trace & trace, int32_t uncounted, lru_curve & out);
