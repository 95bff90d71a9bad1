// Misses of LRU at every capacity in one pass, by stack distances (Mattson and others 1970), with a token's experts as one
// event, as expert-cache.h has it.
//
// All experts ever used stand in a stack, the most recent first. Whatever the capacity C >= K, the cache's members are the
// first C of it: an event touches K of them, worst ranked first, so the stack becomes those K, best ranked first, before
// the others in their order; and the members, the touched ones admitted and the least recent evicted down to C, are again
// its first C. All K are looked up before any is touched. So an expert at place p (from 0) hits where C > p, and one that
// moves from place p to p' is evicted where p < C <= p'. Places are found by walking: reuse is mostly near the top.
#include "route-trace.h"
#include "routing.h"
#include "status.h"

#include <algorithm>

namespace {

// Clocks of admission take experts x experts numbers.
const int32_t MOST_CURVE_EXPERTS = 4096;

struct lru_stack {
    int depth = 0;
    std::vector<int32_t> order;                   // experts, most recent first
    std::vector<int32_t> place;                   // per expert; -1: never used
    std::vector<std::vector<int64_t>> admitted;   // per expert and capacity: clock at admission; valid only where it is a member
};

void stack_init(lru_stack & s, int experts) {
    s.order.assign(size_t(experts), -1);
    s.place.assign(size_t(experts), -1);
    s.admitted.assign(size_t(experts), std::vector<int64_t>(size_t(experts) + 1, 0));
}

// Looks up the event at `ids` at every capacity; `counted` false: only admits.
void look_up(lru_stack & s, const int32_t * ids, int used, int experts, int64_t clock, bool counted, std::vector<int64_t> & misses_above) {
    for (int i = 0; i < used; i++) {
        const int at = s.place[size_t(ids[i])];
        const int missed_up_to = at < 0 ? experts : at;
        // Missed at every capacity up to there; summed up at the end.
        if (counted) misses_above[size_t(missed_up_to)]++;
        std::fill_n(s.admitted[size_t(ids[i])].begin(), size_t(missed_up_to) + 1, clock);
    }
}

// Moves the event's experts to the top, and tells for each that is pushed down the capacities at which it leaves.
void touch(lru_stack & s, const int32_t * ids, int used, int64_t clock, lru_curve_layer & out) {
    int deepest = 0, fresh = 0;
    for (int i = 0; i < used; i++) {
        if (s.place[size_t(ids[i])] < 0) fresh++;
        else deepest = std::max(deepest, s.place[size_t(ids[i])] + 1);
    }
    const int bottom = fresh > 0 ? s.depth : deepest;
    int shift = fresh;
    // From the bottom up, each untouched expert goes down by the number of touched ones that stood below it.
    for (int p = bottom - 1; p >= 0; p--) {
        const int32_t e = s.order[size_t(p)];
        if (std::find(ids, ids + used, e) != ids + used) {
            shift++;
            continue;
        }
        for (int c = p + 1; c <= p + shift; c++) {
            out.evictions[size_t(c)]++;
            out.lifetime_tokens[size_t(c)] += clock - s.admitted[size_t(e)][size_t(c)];
        }
        s.order[size_t(p + shift)] = e;
        s.place[size_t(e)] = p + shift;
    }
    for (int i = 0; i < used; i++) {
        s.order[size_t(i)] = ids[i];
        s.place[size_t(ids[i])] = i;
    }
    s.depth += fresh;
}

lru_curve_layer curve_of_layer(const route_trace & trace, const int32_t * routes, int32_t events, int32_t uncounted) {
    const size_t capacities = size_t(trace.experts) + 1;
    lru_curve_layer out;
    out.misses.assign(capacities, 0);
    out.evictions.assign(capacities, 0);
    out.lifetime_tokens.assign(capacities, 0);
    lru_stack stack;
    stack_init(stack, trace.experts);
    for (int32_t t = 0; t < events; t++) {
        const int32_t * ids = routes + int64_t(t) * trace.top_k;
        const int used = route_trace_used(ids, trace.top_k);
        const int64_t clock = int64_t(t) + 1;
        look_up(stack, ids, used, trace.experts, clock, t >= uncounted, out.misses);
        touch(stack, ids, used, clock, out);
        if (t >= uncounted) out.references += used;
    }
    for (size_t c = capacities - 1; c > 0; c--) out.misses[c - 1] += out.misses[c];
    return out;
}

engine_status lru_curve_of(const route_trace & trace, int32_t uncounted, lru_curve & out) {
    engine_status status = route_trace_check(trace);
    if (!failed(status) && uncounted < 0) status = status_error(ENGINE_BAD_ARGUMENT, "uncounted: expected 0 or more tokens, found %d", uncounted);
    if (!failed(status) && trace.experts > MOST_CURVE_EXPERTS) {
        status = status_error(ENGINE_BAD_ARGUMENT, "experts: a curve takes up to %d, found %d; replay single capacities", MOST_CURVE_EXPERTS, trace.experts);
    }
    if (!failed(status) && !trace.changes.empty()) {
        status = status_error(ENGINE_BAD_ARGUMENT, "changes: a curve over all capacities has no place for changes of capacity; replay the trace");
    }
    std::vector<int32_t> choices;
    if (!failed(status)) status = route_trace_choices(trace, choices);
    if (failed(status)) return status;
    out = lru_curve();
    const int32_t * routes = choices.data();
    for (const int32_t events : trace.layer_events) {
        out.layers.push_back(curve_of_layer(trace, routes, events, uncounted));
        routes += int64_t(events) * trace.top_k;
    }
    return {};
}

}  // namespace

engine_status engine_lru_curve(const route_trace & trace, int32_t uncounted, lru_curve & out) {
    try {
        return lru_curve_of(trace, uncounted, out);
    } catch (const std::exception & error) {
        return status_error(ENGINE_INTERNAL, "lru curve: %s", error.what());
    }
}
