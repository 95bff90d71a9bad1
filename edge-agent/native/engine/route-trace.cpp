#include "route-trace.h"

#include "best-first.h"
#include "routing.h"
#include "status.h"
#include "widest-vectors.h"

#include <cmath>
#include <cstring>

namespace {

size_t row_bytes(const route_trace & t) { return TRACE_ROW_HEAD_BYTES + size_t(t.experts); }

engine_status check_event(const route_trace & t, int64_t event) {
    const int32_t * ids = t.routes.data() + event * t.top_k;
    const int used = route_trace_used(ids, t.top_k);
    for (int i = 0; i < t.top_k; i++) {
        const bool good = i < used ? ids[i] < t.experts : ids[i] == -1;
        if (!good) {
            return status_error(ENGINE_BAD_ARGUMENT, "routes: event %lld, slot %d: expected an expert from 0 to %d, or -1 from there to "
                                "the end, found %d", (long long) event, i, t.experts - 1, ids[i]);
        }
        for (int j = 0; j < i && i < used; j++) {
            if (ids[j] == ids[i]) {
                return status_error(ENGINE_BAD_ARGUMENT, "routes: event %lld selects expert %d twice", (long long) event, ids[i]);
            }
        }
    }
    return {};
}

engine_status check_routes(const route_trace & t, int64_t events) {
    if (t.routes.empty() && route_trace_has_scores(t)) return {};
    if (events * t.top_k != int64_t(t.routes.size())) {
        return status_error(ENGINE_BAD_ARGUMENT, "routes: expected %lld events of %d experts, found %zu ids", (long long) events, t.top_k,
                            t.routes.size());
    }
    engine_status status;
    for (int64_t i = 0; i < events && !failed(status); i++) status = check_event(t, i);
    return status;
}

// Both kinds of scores are `found` units of `each` to an event.
engine_status check_scores(const route_trace & t, const char * what, size_t found, size_t each, int64_t events) {
    if (found == 0) return {};
    for (const int32_t n : t.layer_events) {
        if (n != t.layer_events[0]) {
            return status_error(ENGINE_BAD_ARGUMENT, "layerEvents: with %s every layer has as many events, found %d and %d", what,
                                t.layer_events[0], n);
        }
    }
    if (found / each == size_t(events) && found % each == 0) return {};
    return status_error(ENGINE_BAD_ARGUMENT, "%s: expected %lld events of %zu, found %zu", what, (long long) events, each, found);
}

engine_status check_sizes(const route_trace & t, int64_t & events) {
    if (t.experts < 1 || t.experts > TRACE_MOST_EXPERTS) {
        return status_error(ENGINE_BAD_ARGUMENT, "experts: expected 1 to %d, found %d", TRACE_MOST_EXPERTS, t.experts);
    }
    if (t.top_k < 1 || t.top_k > ROUTE_MAX_K || t.top_k > t.experts) {
        return status_error(ENGINE_BAD_ARGUMENT, "topK: expected 1 to %d, found %d", t.experts < ROUTE_MAX_K ? t.experts : ROUTE_MAX_K, t.top_k);
    }
    events = 0;
    for (const int32_t n : t.layer_events) {
        if (n < 0) return status_error(ENGINE_BAD_ARGUMENT, "layerEvents: expected 0 or more, found %d", n);
        events += n;
    }
    return {};
}

engine_status check_changes(const route_trace & t) {
    std::vector<int32_t> latest(t.layer_events.size(), 0);
    for (size_t i = 0; i < t.changes.size(); i++) {
        const cache_change & c = t.changes[i];
        if (c.layer < 0 || size_t(c.layer) >= latest.size()) {
            return status_error(ENGINE_BAD_ARGUMENT, "changes: entry %zu is of layer %d of %zu", i, c.layer, latest.size());
        }
        if (c.event < latest[size_t(c.layer)] || c.event > t.layer_events[size_t(c.layer)]) {
            return status_error(ENGINE_BAD_ARGUMENT, "changes: entry %zu stands before event %d of layer %d; expected %d to %d, in the order of events",
                                i, c.event, c.layer, latest[size_t(c.layer)], t.layer_events[size_t(c.layer)]);
        }
        latest[size_t(c.layer)] = c.event;
        if (c.warmed >= t.experts) {
            return status_error(ENGINE_BAD_ARGUMENT, "changes: entry %zu admits expert %d; expected 0 to %d, or -1 where it changes a capacity", i,
                                c.warmed, t.experts - 1);
        }
        if (c.warmed >= 0 || c.capacity >= t.top_k) continue;
        return status_error(ENGINE_CAPACITY, "changes: capacity %d of entry %zu is below the %d experts one token needs; use %d or more", c.capacity, i,
                            t.top_k, t.top_k);
    }
    return {};
}

// The k largest by falling z, then by index; returns how many there are.
int largest(const float * z, int experts, int k, int32_t * keys, int32_t * ids) {
    best_first_begin(z, experts, keys);
    int found = 0;
    while (found < k && (ids[found] = best_first_next(keys, experts)) >= 0) found++;
    return found;
}

WIDEST_VECTORS void dequantise(const uint8_t * __restrict levels, int experts, float minimum, float step, bool masks, float * __restrict out) {
    for (int e = 0; e < experts; e++) out[e] = minimum + step * float(levels[e]);
    if (!masks) return;
    for (int e = 0; e < experts; e++) out[e] = levels[e] == TRACE_MASKED_LEVEL ? -INFINITY : out[e];
}

}  // namespace

engine_status route_trace_check(const route_trace & trace) {
    int64_t events = 0;
    engine_status status = check_sizes(trace, events);
    if (!failed(status)) status = check_scores(trace, "scores", trace.scores.size(), size_t(trace.experts), events);
    if (!failed(status)) status = check_scores(trace, "rows", trace.rows.size(), row_bytes(trace), events);
    if (!failed(status)) status = check_changes(trace);
    return failed(status) ? status : check_routes(trace, events);
}

bool route_trace_has_scores(const route_trace & trace) { return !trace.scores.empty() || !trace.rows.empty(); }

const float * route_trace_scores(const route_trace & t, int layer, int64_t event, float * scratch) {
    const size_t at = size_t(event) * t.layer_events.size() + size_t(layer);
    if (!t.scores.empty()) return t.scores.data() + at * size_t(t.experts);
    const uint8_t * row = t.rows.data() + at * row_bytes(t);
    float minimum, step;
    memcpy(&minimum, row, sizeof(minimum));
    memcpy(&step, row + sizeof(minimum), sizeof(step));
    dequantise(row + TRACE_ROW_HEAD_BYTES, t.experts, minimum, step, t.rows_mask, scratch);
    return scratch;
}

engine_status route_trace_choices(const route_trace & t, std::vector<int32_t> & out) {
    if (!t.routes.empty()) {
        out = t.routes;
        return {};
    }
    std::vector<float> scratch(static_cast<size_t>(t.experts));
    std::vector<int32_t> keys(scratch.size());
    out.clear();
    for (int l = 0; l < int(t.layer_events.size()); l++) {
        for (int32_t i = 0; i < t.layer_events[size_t(l)]; i++) {
            int32_t ids[ROUTE_MAX_K];
            const int found = largest(route_trace_scores(t, l, i, scratch.data()), t.experts, t.top_k, keys.data(), ids);
            if (found < t.top_k) {
                return status_error(ENGINE_BAD_ARGUMENT, "scores: event %d of layer %d has %d experts with a finite score, and a token takes %d; the "
                                    "record is damaged", i, l, found, t.top_k);
            }
            out.insert(out.end(), ids, ids + t.top_k);
        }
    }
    return {};
}
