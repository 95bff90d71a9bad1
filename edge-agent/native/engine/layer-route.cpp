#include "layer-route.h"

#include "miss-fetch.h"
#include "miss-stream.h"

#include <algorithm>
#include <cstring>

void layer_stop_with(layer_hook & hook, const engine_status & status) {
    if (!failed(hook.error)) hook.error = status;
}

void layer_release_surplus(layer_hook & hook) {
    const int layer = hook.surplus_layer;
    hook.surplus_layer = -1;
    if (layer < 0 || hook.keep_all) return;
    const uint8_t * kept = (*hook.owner)[layer].cache.resident.data();
    const std::vector<uint8_t> & present = hook.memory->layers[size_t(layer)].present;
    for (int e = 0; e < hook.info->experts; e++) {
        if (present[size_t(e)] && !kept[e]) expert_memory_release(*hook.memory, layer, e);
    }
}

static bool ids_in_range(const int32_t * ids, int k, int experts) {
    for (int i = 0; i < k; i++) {
        if (ids[i] < 0 || ids[i] >= experts) return false;
    }
    return true;
}

static bool is_biased(const layer_hook & hook) { return hook.pass == PASS_ROUTED || (hook.pass == PASS_PREFILL && hook.bias_prefill); }

// One token's routing event. Notes in `hook.needed` what the layer will touch, and in `hook.victim` whom each admission
// displaced. Returns how many experts the token uses.
static int route_row(layer_hook & hook, int layer, const reuse_scores & scores, int32_t * ids, int top_k) {
    layer_state & state = (*hook.layers)[layer];
    const bool counted = hook.pass == PASS_ROUTED;
    for (int i = 0; i < top_k && counted; i++) state.use[size_t(ids[i])].wanted.add(1);
    int32_t missed[ROUTE_MAX_K], evicted[ROUTE_MAX_K];
    cache_event event{0, 0, 0, missed, evicted};
    const route_policy * policy = is_biased(hook) ? &hook.policies[size_t(layer)] : nullptr;
    const route_outcome routed = layer_state_route(state, layer, policy, scores, ids, top_k, hook.ranking.data(), event);
    for (int i = 0; i < event.misses; i++) {
        // A second admission within one micro-batch reads nothing, so the first displaced expert stands.
        if (!hook.needed[size_t(missed[i])]) hook.victim[size_t(missed[i])] = i < event.evictions ? evicted[i] : -1;
    }
    for (int i = 0; i < routed.kept; i++) hook.needed[size_t(ids[i])] = 1;
    for (int i = 0; i < routed.kept && counted; i++) state.use[size_t(ids[i])].chosen.add(1);
    if (counted) {
        hook.outcome.hits += event.hits;
        hook.outcome.misses += event.misses;
        hook.outcome.dropped += top_k - routed.kept;
        hook.outcome.swaps += routed.swaps;
        layer_state_count(state, routed, event, top_k);
    }
    return routed.kept;
}

// What the routers said of row `row` of `rows`. A layer has fewer rows than the one below where only the last are asked for.
static reuse_scores scores_of(const layer_hook & hook, int layer, int64_t row, int64_t rows) {
    const size_t experts = size_t(hook.info->experts);
    const int64_t same = hook.below_rows - rows + row;
    reuse_scores scores;
    scores.here = hook.scores.data() + size_t(row) * experts;
    if (layer > 0 && hook.below_layer == layer - 1 && same >= 0) scores.below = hook.below.data() + size_t(same) * experts;
    return scores;
}

// The layer's misses into `hook.missed`: a single token's best ranked first, a batch's ascending by id.
static int collect_missed(layer_hook & hook, const int32_t * ids, int k, int64_t rows) {
    int n = 0;
    if (rows == 1) {
        for (int i = 0; i < k; i++) {
            if (!hook.before[size_t(ids[i])]) hook.missed[size_t(n++)] = ids[i];
        }
        return n;
    }
    for (int e = 0; e < hook.info->experts; e++) {
        if (hook.needed[size_t(e)] && !hook.before[size_t(e)]) hook.missed[size_t(n++)] = e;
    }
    return n;
}

// Prefill: one hit or miss per distinct expert, against the members before the micro-batch.
static void count_distinct(layer_hook & hook, layer_tally & tally) {
    int64_t hits = 0, misses = 0;
    for (int e = 0; e < hook.info->experts; e++) {
        if (!hook.needed[size_t(e)]) continue;
        if (hook.members[size_t(e)]) hits++;
        else misses++;
    }
    hook.outcome.hits += hits;
    hook.outcome.misses += misses;
    tally.prefill_hits.add(hits);
    tally.prefill_misses.add(misses);
}

// Evicted experts that this layer does not touch go before anything is read; those that it does touch stay as
// surplus until the layer is done.
static void release_evicted(layer_hook & hook, int layer) {
    const uint8_t * kept = (*hook.owner)[layer].cache.resident.data();
    const std::vector<uint8_t> & present = hook.memory->layers[size_t(layer)].present;
    for (int e = 0; e < hook.info->experts; e++) {
        if (kept[e]) continue;
        if (hook.needed[size_t(e)]) hook.surplus_layer = layer;
        else if (present[size_t(e)] && !hook.keep_all) expert_memory_release(*hook.memory, layer, e);
    }
}

void layer_take_scores(layer_hook & hook, int layer, const ggml_tensor * tensor) {
    const size_t row = size_t(hook.info->experts);
    if (tensor->ne[0] != hook.info->experts || size_t(tensor->ne[1]) * row > hook.scores.size()) {
        layer_stop_with(hook, status_error(ENGINE_INTERNAL, "%s: unexpected shape", tensor->name));
        return;
    }
    if (hook.scored_layer != layer) {
        std::swap(hook.scores, hook.below);
        hook.below_layer = hook.scored_layer;
        hook.below_rows = hook.scored_rows;
    }
    for (int64_t r = 0; r < tensor->ne[1]; r++) {
        memcpy(hook.scores.data() + size_t(r) * row, static_cast<const char *>(tensor->data) + size_t(r) * tensor->nb[1],
               row * sizeof(float));
    }
    hook.scored_layer = layer;
    hook.scored_rows = tensor->ne[1];
    if (hook.prefetch.active) prefetch_see(hook.prefetch, tensor);
    if (hook.see_scores) hook.see_scores(hook.see_data, layer, tensor, hook.scores.data(), tensor->ne[1]);
}

bool layer_drops_experts(const layer_hook & hook, int layer) {
    return is_biased(hook) && hook.policies[size_t(layer)].routing == ROUTING_PRUNED;
}

// `weights` is [1, K, rows].
void layer_drop_weights(layer_hook & hook, const ggml_tensor * weights) {
    if (failed(hook.error)) return;
    const int k = hook.info->top_k;
    if (weights->type != GGML_TYPE_F32 || weights->ne[0] != 1 || weights->ne[1] != k || weights->nb[1] != sizeof(float) ||
        size_t(weights->ne[2]) > hook.kept.size()) {
        layer_stop_with(hook, status_error(ENGINE_INTERNAL, "%s: unexpected shape", weights->name));
        return;
    }
    for (int64_t r = 0; r < weights->ne[2]; r++) {
        float * row = reinterpret_cast<float *>(static_cast<char *>(weights->data) + size_t(r) * weights->nb[2]);
        route_drop_weights(row, hook.kept[size_t(r)], k, hook.softmax_weights);
    }
}

// A layer has fewer rows than the pass has tokens where only the last of them are asked for.
static void record_route(layer_hook & hook, int layer, int64_t row, int64_t rows, const int32_t * ids, int kept, int k) {
    const int64_t token = hook.route_tokens - rows + row;
    if (token < 0) return;
    int32_t * out = hook.routes + (size_t(token) * hook.routers.size() + size_t(layer)) * size_t(k);
    for (int i = 0; i < k; i++) out[i] = i < kept ? ids[i] : -1;
}

// Scores of the pass's tokens, all of which the layer sees.
static void record_scores(layer_hook & hook, int layer, int64_t rows) {
    const size_t experts = size_t(hook.info->experts);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(hook.recorded + (size_t(r) * hook.routers.size() + size_t(layer)) * experts, hook.scores.data() + size_t(r) * experts, experts * sizeof(float));
    }
}

// Where one token is decoded through the real cache.
static bool guesses_next(const layer_hook & hook, int layer, int64_t rows) {
    return hook.prefetch.active && hook.pass == PASS_ROUTED && rows == 1 && hook.owner == hook.layers && !hook.keep_all &&
           layer + 1 < hook.layers->count;
}

static guess_terms terms_of(const layer_hook & hook, int layer) {
    const layer_state & state = (*hook.layers)[layer];
    const route_policy & policy = hook.policies[size_t(layer)];
    guess_terms terms;
    terms.resident = state.cache.resident.data();
    terms.range = range_mean_value(state.range);
    terms.bonus = policy.routing == ROUTING_CACHE_PRIOR ? policy.lambda * terms.range : 0;
    terms.top_j = policy.top_j;
    return terms;
}

void layer_route(layer_hook & hook, int layer, const ggml_tensor * topk) {
    miss_stream_finish(hook);
    miss_fetch_finish(hook);
    layer_release_surplus(hook);
    if (hook.shrink && cache_shrink_waits(*hook.shrink)) layer_hook_shrink(hook);
    const int k = int(topk->ne[0]);
    const int64_t rows = topk->ne[1];
    if (rows == 0 || failed(hook.error)) return;
    if (k != hook.info->top_k || size_t(rows) * size_t(hook.info->experts) > hook.scores.size()) {
        layer_stop_with(hook, status_error(ENGINE_INTERNAL, "%s: unexpected shape", topk->name));
        return;
    }
    if (layer_drops_experts(hook, layer) && hook.routers[size_t(layer)].weights[0] == 0) {
        layer_stop_with(hook, status_error(ENGINE_BAD_ARGUMENT, "routing: this model does not gather gate weights by expert, so 'pruned' "
                                     "cannot take any out; choose another routing"));
        return;
    }
    const ggml_tensor * kept = hook.own_scores.tensors[size_t(layer)];
    if (kept || hook.routers[size_t(layer)].scores_at_topk) layer_take_scores(hook, layer, kept ? kept : topk->src[0]->src[0]);
    if (failed(hook.error)) return;
    if (hook.scored_layer != layer || hook.scored_rows != rows) {
        layer_stop_with(hook, status_error(ENGINE_INTERNAL, "%s: its scores were not seen", topk->name));
        return;
    }

    layer_state & state = (*hook.layers)[layer];
    hook.members = state.cache.resident;
    hook.before = hook.owner == hook.layers ? hook.members : hook.memory->layers[size_t(layer)].present;
    std::fill(hook.needed.begin(), hook.needed.end(), 0);
    int32_t * ids = nullptr;
    for (int64_t r = 0; r < rows; r++) {
        // A view into the sorted indices: the rows are further apart than k.
        ids = reinterpret_cast<int32_t *>(static_cast<char *>(topk->data) + size_t(r) * topk->nb[1]);
        if (!ids_in_range(ids, k, hook.info->experts)) {
            layer_stop_with(hook, status_error(ENGINE_INTERNAL, "%s: selected an expert that does not exist", topk->name));
            return;
        }
        hook.kept[size_t(r)] = route_row(hook, layer, scores_of(hook, layer, r, rows), ids, k);
        if (hook.routes) record_route(hook, layer, r, rows, ids, hook.kept[size_t(r)], k);
    }
    if (hook.recorded) record_scores(hook, layer, rows);
    if (hook.pass == PASS_PREFILL) count_distinct(hook, state.tally);
    if (hook.capture && rows == 1) {
        memcpy(hook.capture + size_t(layer) * size_t(hook.info->experts), hook.scores.data(), size_t(hook.info->experts) * sizeof(float));
    }
    release_evicted(hook, layer);
    const int missed = collect_missed(hook, ids, hook.kept[0], rows);
    if (rows == 1 && hook.owner == hook.layers) {
        int32_t & quiet = hook.moments.layers[size_t(layer)].quiet;
        quiet = missed > 0 ? 0 : std::min(quiet, INT32_MAX - 1) + 1;
    }
    prefetch_settle(hook.prefetch, layer, hook.missed.data(), missed);
    if (missed > 0 && rows > 1 && hook.passing) miss_stream_begin(hook, layer, missed);
    else if (missed > 0) miss_fetch_begin(hook, layer, missed);
    if (hook.prefetch.active && rows == 1) prefetch_note(hook.prefetch, layer, hook.scores.data(), ids, hook.kept[0]);
    if (guesses_next(hook, layer, rows)) prefetch_guess(hook.prefetch, layer + 1, terms_of(hook, layer + 1));
    state.tally.resident.set(state.cache.size);
    state.tally.range_mean.set(range_mean_value(state.range));
}
