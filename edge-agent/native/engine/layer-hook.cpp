#include "layer-hook.h"

#include "layer-route.h"
#include "miss-fetch.h"
#include "miss-stream.h"
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
    hook.policies.resize(info.moe_layers.size());
    hook.moe_index.assign(size_t(info.layers), -1);
    for (size_t i = 0; i < info.moe_layers.size(); i++) hook.moe_index[size_t(info.moe_layers[i])] = int32_t(i);

    const size_t experts = size_t(info.experts);
    graph_moments_init(hook.moments, int(info.moe_layers.size()));
    hook.own_scores.room.resize(experts + 16);
    hook.own_scores.row = reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(hook.own_scores.room.data()) + 63) & ~uintptr_t(63));
    hook.own_scores.tensors.assign(info.moe_layers.size(), nullptr);
    expert_reads_init(hook.reads, memory, reader);
    router_forecast_init(hook.prefetch.forecast, int(info.moe_layers.size()), info.experts);
    prefetch_init(hook.prefetch, hook.reads, info.top_k, keep_all ? 0 : prefetch_slots(info.top_k));
    hook.fetch.reading.resize(experts);
    hook.stream.order.resize(experts);
    hook.stream.missed.resize(experts);
    hook.stream.reads.resize(experts);
    hook.stream.stays.resize(experts);
    hook.needed.resize(experts);
    hook.before.resize(experts);
    hook.members.resize(experts);
    hook.missed.resize(experts);
    hook.evicted.resize(experts);
    hook.victim.resize(experts);
    hook.ranking.resize(experts);
    hook.events.resize(experts);
}

void layer_hook_reserve(layer_hook & hook, int rows) {
    const size_t floats = size_t(rows) * size_t(hook.info->experts);
    if (hook.scores.size() < floats) hook.scores.resize(floats);
    if (hook.below.size() < floats) hook.below.resize(floats);
    if (hook.kept.size() < size_t(rows)) hook.kept.resize(size_t(rows));
}

void layer_hook_follow(layer_hook & hook, const engine_spec & spec) {
    for (size_t l = 0; l < hook.policies.size(); l++) hook.policies[l] = route_policy_of(spec, int(l));
    hook.heard_letters['w'] = spec.routing == ROUTING_PRUNED;  // gate weights
    hook.bias_prefill = spec.bias_prefill;
    hook.generation = spec.generation;
    hook.prefetch.mode = spec.prefetch;
}

void layer_hook_begin(layer_hook & hook, pass_kind pass) {
    hook.pass = pass;
    hook.outcome = pass_outcome();
    if (pass != PASS_LOOK) prefetch_begin(hook.prefetch);
    const bool many = pass == PASS_PREFILL || hook.owner != hook.layers;
    expert_memory_set_passing(*hook.memory, many && hook.passing ? hook.passing_bytes : 0);
    hook.error = engine_status();
    graph_moments_begin(hook.moments);
    std::fill(hook.own_scores.tensors.begin(), hook.own_scores.tensors.end(), nullptr);
    hook.surplus_layer = hook.scored_layer = hook.below_layer = -1;
}

static bool is_over(const layer_hook & hook) { return failed(hook.error) || hook.cancelled.load(std::memory_order_relaxed); }

void layer_hook_end(layer_hook & hook) {
    const bool missed_one = hook.moments.due_next < hook.moments.due_count && hook.pass != PASS_LOOK && !is_over(hook);
    if (missed_one) layer_stop_with(hook, status_error(ENGINE_INTERNAL, "a layer's choice of experts was not seen"));
    expert_multiply_restore(hook.multiply);
    miss_stream_finish(hook);
    miss_fetch_finish(hook);
    layer_release_surplus(hook);
    expert_memory_set_passing(*hook.memory, 0);
    prefetch_pause(hook.prefetch);
}

void layer_hook_shrink(layer_hook & hook) {
    // The lower bound first: whoever leaves then gives its pages back instead of keeping them as spares.
    int64_t most = hook.prefetch.mode == PREFETCH_OFF ? 0 : prefetch_staging_bytes(hook.prefetch);
    for (int l = 0; l < hook.owner->count; l++) {
        const int32_t capacity = std::min((*hook.owner)[l].cache.capacity, hook.shrink->most[size_t(l)].load(std::memory_order_relaxed));
        most += capacity * int64_t(hook.info->expert_bytes[size_t(l)]);
    }
    expert_memory_set_most(*hook.memory, most);
    cache_shrink_serve(*hook.shrink, {hook.owner, hook.memory, hook.keep_all, hook.evicted.data(), hook.changes});
}

static int layer_of(const layer_hook & hook, int block) {
    return block >= 0 && block < int(hook.moe_index.size()) ? hook.moe_index[size_t(block)] : -1;
}

static void note_turn(layer_hook & hook, const ggml_tensor * matrix) {
    for (int l = 0; l < int(hook.routers.size()); l++) {
        if (expert_reads_place(hook.reads, l, matrix) < 0) continue;
        expert_reads_note_turn(hook.reads, l, matrix->name);
        hook.longest_row = std::max(hook.longest_row, matrix->ne[0]);
        hook.longest_product = std::max(hook.longest_product, matrix->ne[1]);
    }
}

static void look(layer_hook & hook, const ggml_tensor * tensor) {
    if (tensor->op == GGML_OP_MUL_MAT_ID) note_turn(hook, tensor->src[0]);
    if (graph_node_block(tensor->name, "ffn_moe_weights_softmax") >= 0) hook.softmax_weights = hook.normalises_weights = true;
    if (graph_node_block(tensor->name, "ffn_moe_weights_norm") >= 0) hook.normalises_weights = true;
    const int gathered = layer_of(hook, graph_node_block(tensor->name, "ffn_moe_weights"));
    if (gathered >= 0) router_place_find_weights(tensor, hook.routers[size_t(gathered)]);
    const int layer = layer_of(hook, graph_node_block(tensor->name, "ffn_moe_topk"));
    if (layer < 0) return;
    if (hook.routers[size_t(layer)].topk[0] != 0) {
        return layer_stop_with(hook, status_error(ENGINE_MODEL_FORMAT, "%s: the layer chooses experts twice, which is not supported", tensor->name));
    }
    const engine_status status = router_place_find(tensor, hook.routers[size_t(layer)]);
    if (failed(status)) return layer_stop_with(hook, status);
    for (const char * name : {hook.routers[size_t(layer)].topk, hook.routers[size_t(layer)].scores}) {
        if (strlen(name) > ROUTER_STEM) hook.heard_letters[uint8_t(name[ROUTER_STEM])] = true;
    }
    router_forecast_note(hook.prefetch.forecast, layer, hook.routers[size_t(layer)], tensor);
}

// Someone looks at the router's input, which is there only as long as its scores have just been computed.
static bool needs_router_input(const layer_hook & hook) { return hook.prefetch.active || hook.see_scores; }

// Has a row of scores computed where nothing is placed over it. Its views, which come after it, follow.
static bool keep_scores(layer_hook & hook, int layer, ggml_tensor * scores) {
    if (!hook.routers[size_t(layer)].scores_move || needs_router_input(hook) || scores->view_src || scores->type != GGML_TYPE_F32 ||
        ggml_nelements(scores) != hook.info->experts || !scores->buffer || !ggml_backend_buffer_is_host(scores->buffer)) {
        return false;
    }
    scores->data = hook.own_scores.row;
    hook.own_scores.tensors[size_t(layer)] = scores;
    return true;
}

static void follow_scores(const layer_hook & hook, ggml_tensor * view) {
    if (view->view_src->data != hook.own_scores.row) return;
    view->data = static_cast<char *>(view->view_src->data) + view->view_offs;
}

// Tokens without a miss after which a layer is trusted to have none. A miss that is not stopped for costs what the graph
// could have computed while it was read, at most its layer's time, against the stop that each of the tokens before it saved,
// from half to one percent of that on the smallest models.
static const int32_t QUIET_TOKENS = 128;

// Where nothing is likely to be read the graph need not stop for the choice.
static bool is_quiet(const layer_hook & hook, int layer) {
    const bool has_all = (*hook.layers)[layer].cache.size == hook.info->experts;
    return hook.owner == hook.layers && !layer_drops_experts(hook, layer) && (has_all || hook.moments.layers[size_t(layer)].quiet >= QUIET_TOKENS);
}

static bool is_fetching(const layer_hook & hook) { return miss_fetch_under_way(hook) || miss_stream_under_way(hook); }

bool layer_hook_eval(ggml_tensor * tensor, bool ask, void * data) {
    layer_hook & hook = *static_cast<layer_hook *>(data);
    if (hook.pass == PASS_LOOK) {
        if (ask) look(hook, tensor);
        return !ask;
    }
    if (ask) {
        graph_moments_announce(hook.moments, tensor);
        if (tensor->view_src) follow_scores(hook, tensor);
        if (miss_fetch_under_way(hook)) miss_fetch_before(hook, tensor);
        if (miss_stream_under_way(hook)) miss_stream_before(hook, tensor);
        if (is_fetching(hook)) hook.moments.node_by_node = true;
    } else {
        expert_multiply_restore(hook.multiply);
        miss_fetch_after(hook);
        miss_stream_after(hook);
    }
    // While reads are under way the graph is computed node by node, so that it gets as far as it can before each wait.
    const bool stop_here = !ask || is_fetching(hook);
    const ggml_tensor * node = router_rows_of(tensor);
    if (!is_router_node(node) || !hook.heard_letters[uint8_t(node->name[ROUTER_STEM])]) return stop_here;
    const char * dash = strrchr(node->name, '-');
    const int layer = dash ? layer_of(hook, atoi(dash + 1)) : -1;
    if (layer < 0) return stop_here;
    const router_place & router = hook.routers[size_t(layer)];
    const bool is_topk = strcmp(tensor->name, router.topk) == 0;
    const bool is_scores = !router.scores_at_topk && strcmp(node->name, router.scores) == 0;
    const bool is_weights = layer_drops_experts(hook, layer) && strcmp(tensor->name, router.weights) == 0;
    if (ask) {
        if (stop_here || is_weights) return true;
        if (is_scores) return !keep_scores(hook, layer, tensor);
        return is_topk && !(is_quiet(hook, layer) && graph_moments_arm(hook.moments, layer, tensor));
    }
    if (is_scores && !failed(hook.error)) layer_take_scores(hook, layer, tensor);
    if (is_topk) {
        graph_moments_learn(hook.moments, layer, tensor);
        layer_route(hook, layer, tensor);
    }
    if (is_weights) layer_drop_weights(hook, tensor);
    return true;
}

// Between two nodes of the graph. What is missing after all is waited for at once: until the first thread goes on, none does.
static void route_within(layer_hook & hook, int layer) {
    const ggml_tensor * topk = hook.moments.layers[size_t(layer)].topk;
    if (!graph_moments_sorted(topk)) {
        return layer_stop_with(hook, status_error(ENGINE_INTERNAL, "%s: was not computed when it was expected", topk->name));
    }
    layer_route(hook, layer, topk);
    miss_fetch_finish(hook);
}

bool layer_hook_abort(void * data) {
    layer_hook & hook = *static_cast<layer_hook *>(data);
    if (hook.pass == PASS_LOOK) return true;
    const int layer = graph_moments_ask(hook.moments);
    if (layer >= 0) route_within(hook, layer);
    return is_over(hook);
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
