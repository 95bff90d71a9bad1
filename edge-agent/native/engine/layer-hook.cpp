#include "layer-hook.h"

#include "miss-fetch.h"
#include "router-place.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>


void layer_hook_init(layer_hook & hook, const model_info & info, expert_memory & memory, flash_reader & reader,
                     engine_totals & totals, bool keep_all) {
    hook.info = &info;
    hook.memory = &memory;
    hook.reader = &reader;
    hook.totals = &totals;
    hook.keep_all = keep_all;
    hook.routers.assign(info.moe_layers.size(), router_place());
    hook.moe_index.assign(size_t(info.layers), -1);
    for (size_t i = 0; i < info.moe_layers.size(); i++) hook.moe_index[size_t(info.moe_layers[i])] = int32_t(i);

    const size_t experts = size_t(info.experts);
    size_t slices = 0;
    for (const auto & layer : memory.layers) {
        size_t per_expert = 0;
        for (int p = 0; p < layer.n_places; p++) per_expert += size_t(flash_slices_needed(layer.places[p].bytes));
        slices = std::max(slices, per_expert * experts);
    }
    hook.slices.resize(slices);
    hook.needed.resize(experts);
    hook.missed.resize(experts);
    hook.evicted.resize(experts);
    hook.victim.resize(experts);
    hook.order.resize(experts);
    hook.events.resize(experts);
}

void layer_hook_reserve(layer_hook & hook, int rows) {
    const size_t floats = size_t(rows) * size_t(hook.info->experts);
    if (hook.scores.size() < floats) hook.scores.resize(floats);
}

void layer_hook_begin(layer_hook & hook, pass_kind pass) {
    hook.pass = pass;
    hook.outcome = pass_outcome();
    hook.error = engine_status();
    hook.surplus_layer = -1;
}

static void release_surplus(layer_hook & hook) {
    const int layer = hook.surplus_layer;
    hook.surplus_layer = -1;
    if (layer < 0 || hook.keep_all) return;
    const uint8_t * kept = (*hook.owner)[layer].cache.resident.data();
    const std::vector<uint8_t> & present = hook.memory->layers[size_t(layer)].present;
    for (int e = 0; e < hook.info->experts; e++) {
        if (present[size_t(e)] && !kept[e]) expert_memory_release(*hook.memory, layer, e);
    }
}

void layer_hook_end(layer_hook & hook) { release_surplus(hook); }

static void stop_with(layer_hook & hook, const engine_status & status) {
    if (!failed(hook.error)) hook.error = status;
}

static bool ids_in_range(const int32_t * ids, int k, int experts) {
    for (int i = 0; i < k; i++) {
        if (ids[i] < 0 || ids[i] >= experts) return false;
    }
    return true;
}

// One token's routing event: choose, look up, touch, admit, evict. Notes in `hook.needed` what the layer will touch,
// and in `hook.victim` whom each admission displaced.
static void route_row(layer_hook & hook, layer_state & state, const float * z, int32_t * ids, int k) {
    range_mean_add(state.range, route_range(z, hook.info->experts));
    if (hook.pass == PASS_ROUTED) {
        const route_outcome routed = route_select(z, hook.info->experts, state.cache.resident.data(), hook.routing, hook.lambda,
                                                  hook.top_j, range_mean_value(state.range), ids, k);
        hook.outcome.swaps += routed.swaps;
        state.tally.swaps.add(routed.swaps);
        state.tally.mass_lost.add(routed.mass_lost);
        state.tally.events.add(1);
    }
    int32_t missed[ROUTE_MAX_K], evicted[ROUTE_MAX_K];
    cache_event event{0, 0, 0, missed, evicted};
    expert_cache_event(state.cache, ids, k, event);
    for (int i = 0; i < event.misses; i++) {
        // A second admission within one micro-batch reads nothing, so the first displaced expert stands.
        if (!hook.needed[size_t(missed[i])]) hook.victim[size_t(missed[i])] = i < event.evictions ? evicted[i] : -1;
    }
    for (int i = 0; i < k; i++) hook.needed[size_t(ids[i])] = 1;
    if (hook.pass == PASS_ROUTED) {
        hook.outcome.hits += event.hits;
        hook.outcome.misses += event.misses;
        state.tally.hits.add(event.hits);
        state.tally.misses.add(event.misses);
    }
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
        if (hook.before[size_t(e)]) hits++;
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

static void take_scores(layer_hook & hook, const ggml_tensor * tensor) {
    const size_t row = size_t(hook.info->experts);
    if (tensor->ne[0] != hook.info->experts || size_t(tensor->ne[1]) * row > hook.scores.size()) {
        stop_with(hook, status_error(ENGINE_INTERNAL, "%s: unexpected shape", tensor->name));
        return;
    }
    for (int64_t r = 0; r < tensor->ne[1]; r++) {
        memcpy(hook.scores.data() + size_t(r) * row, static_cast<const char *>(tensor->data) + size_t(r) * tensor->nb[1],
               row * sizeof(float));
    }
}

static void route_layer(layer_hook & hook, int layer, const ggml_tensor * topk) {
    release_surplus(hook);
    const int k = int(topk->ne[0]);
    const int64_t rows = topk->ne[1];
    if (rows == 0 || failed(hook.error)) return;
    if (k != hook.info->top_k || size_t(rows) * size_t(hook.info->experts) > hook.scores.size()) {
        stop_with(hook, status_error(ENGINE_INTERNAL, "%s: unexpected shape", topk->name));
        return;
    }
    if (hook.routers[size_t(layer)].scores_at_topk) take_scores(hook, topk->src[0]->src[0]);

    layer_state & state = (*hook.layers)[layer];
    hook.before = hook.owner == hook.layers ? state.cache.resident : hook.memory->layers[size_t(layer)].present;
    std::fill(hook.needed.begin(), hook.needed.end(), 0);
    int32_t * ids = nullptr;
    for (int64_t r = 0; r < rows; r++) {
        // A view into the sorted indices: the rows are further apart than k.
        ids = reinterpret_cast<int32_t *>(static_cast<char *>(topk->data) + size_t(r) * topk->nb[1]);
        if (!ids_in_range(ids, k, hook.info->experts)) {
            stop_with(hook, status_error(ENGINE_INTERNAL, "%s: selected an expert that does not exist", topk->name));
            return;
        }
        route_row(hook, state, hook.scores.data() + size_t(r) * size_t(hook.info->experts), ids, k);
    }
    if (hook.pass == PASS_PREFILL) count_distinct(hook, state.tally);
    if (hook.capture && rows == 1) {
        memcpy(hook.capture + size_t(layer) * size_t(hook.info->experts), hook.scores.data(), size_t(hook.info->experts) * sizeof(float));
    }
    release_evicted(hook, layer);
    const int missed = collect_missed(hook, ids, k, rows);
    if (missed > 0) {
        miss_fetch_read(hook, layer, missed);
        if (hook.ring) miss_fetch_report(hook, layer, missed);
    }
    state.tally.resident.set(state.cache.size);
    state.tally.range_mean.set(range_mean_value(state.range));
}

static int layer_of(const layer_hook & hook, int block) {
    return block >= 0 && block < int(hook.moe_index.size()) ? hook.moe_index[size_t(block)] : -1;
}

static void look(layer_hook & hook, const ggml_tensor * tensor) {
    if (graph_node_block(tensor->name, "ffn_moe_weights_norm") >= 0 || graph_node_block(tensor->name, "ffn_moe_weights_softmax") >= 0) {
        hook.normalises_weights = true;
    }
    const int layer = layer_of(hook, graph_node_block(tensor->name, "ffn_moe_topk"));
    if (layer < 0) return;
    const engine_status status = router_place_find(tensor, hook.routers[size_t(layer)]);
    if (failed(status)) stop_with(hook, status);
}

static bool is_router_node(const ggml_tensor * t) { return strncmp(t->name, "ffn_moe_", 8) == 0; }

bool layer_hook_eval(ggml_tensor * tensor, bool ask, void * data) {
    layer_hook & hook = *static_cast<layer_hook *>(data);
    if (hook.pass == PASS_LOOK) {
        if (ask) look(hook, tensor);
        return !ask;
    }
    if (!is_router_node(tensor)) return !ask;
    const char * dash = strrchr(tensor->name, '-');
    const int layer = dash ? layer_of(hook, atoi(dash + 1)) : -1;
    if (layer < 0) return !ask;
    const router_place & router = hook.routers[size_t(layer)];
    const bool is_topk = strcmp(tensor->name, router.topk) == 0;
    const bool is_scores = !router.scores_at_topk && strcmp(tensor->name, router.scores) == 0;
    if (ask) return is_topk || is_scores;
    if (is_scores && !failed(hook.error)) take_scores(hook, tensor);
    if (is_topk) route_layer(hook, layer, tensor);
    return true;
}

bool layer_hook_abort(void * data) {
    const layer_hook & hook = *static_cast<layer_hook *>(data);
    return hook.pass == PASS_LOOK || failed(hook.error) || hook.cancelled.load(std::memory_order_relaxed);
}

engine_status layer_hook_check(const layer_hook & hook) {
    if (failed(hook.error)) return hook.error;
    for (size_t i = 0; i < hook.routers.size(); i++) {
        if (hook.routers[i].topk[0] == 0) {
            return status_error(ENGINE_MODEL_FORMAT, "blk.%d: the file has experts, but the graph has no router for them",
                                hook.info->moe_layers[i]);
        }
        if (hook.routers[i].select_by != hook.routers[0].select_by) {
            return status_error(ENGINE_MODEL_FORMAT, "blk.%d: selects experts in another way than blk.%d, which is not supported",
                                hook.info->moe_layers[i], hook.info->moe_layers[0]);
        }
    }
    return {};
}
