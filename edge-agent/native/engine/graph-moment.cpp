#include "graph-moment.h"

#include "ggml-backend.h"

void graph_moments_init(graph_moments & moments, int layers) {
    moments.layers.assign(size_t(layers), layer_moment());
    moments.due.assign(size_t(layers), -1);
}

void graph_moments_begin(graph_moments & moments) {
    moments.due_count = moments.due_next = 0;
    moments.announced = moments.asked = 0;
    moments.node_by_node = false;
    moments.last = moments.before = nullptr;
}

// One row, sorted by the first thread alone, with nothing computed between the sorting and the view of its first K.
static bool can_act_within(const graph_moments & moments, const ggml_tensor * topk) {
    const ggml_tensor * sorted = topk->src[0];
    return !moments.node_by_node && topk->op == GGML_OP_VIEW && sorted->op == GGML_OP_ARGSORT && ggml_nrows(sorted) == 1 && moments.last == topk &&
           moments.before == sorted && sorted->buffer && ggml_backend_buffer_is_host(sorted->buffer);
}

void graph_moments_learn(graph_moments & moments, int layer, const ggml_tensor * topk) {
    if (!can_act_within(moments, topk)) return;
    layer_moment & moment = moments.layers[size_t(layer)];
    moment.announced = moments.announced;
    moment.asked = moments.asked;
}

bool graph_moments_arm(graph_moments & moments, int layer, ggml_tensor * topk) {
    layer_moment & moment = moments.layers[size_t(layer)];
    const bool known = moment.asked > moments.asked && moment.announced == moments.announced;
    if (!known || !can_act_within(moments, topk)) return false;
    moment.topk = topk;
    moments.due[size_t(moments.due_count++)] = layer;
    return true;
}

bool graph_moments_sorted(const ggml_tensor * topk) {
    const int64_t experts = topk->src[0]->ne[0];
    const int32_t * ids = static_cast<const int32_t *>(topk->src[0]->data);
    const float * scores = static_cast<const float *>(topk->src[0]->src[0]->data);
    for (int64_t i = 0; i < experts; i++) {
        if (ids[i] < 0 || ids[i] >= experts || (i > 0 && scores[ids[i]] > scores[ids[i - 1]])) return false;
    }
    return true;
}
