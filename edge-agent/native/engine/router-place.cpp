#include "router-place.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

int graph_node_block(const char * name, const char * stem) {
    const size_t n = strlen(stem);
    if (strncmp(name, stem, n) != 0 || name[n] != '-') return -1;
    char * end = nullptr;
    const long block = strtol(name + n + 1, &end, 10);
    return end != name + n + 1 && *end == 0 && block >= 0 && block < 100000 ? int(block) : -1;
}

// Both hold GGML_MAX_NAME bytes with the terminator.
static void copy_name(char (&to)[GGML_MAX_NAME], const char * from) { memcpy(to, from, GGML_MAX_NAME); }

static bool is_unary(const ggml_tensor * t, ggml_unary_op op) {
    return t->op == GGML_OP_UNARY && ggml_get_unary_op(t) == op;
}

// Logits of the router's matrix, with or without its bias, a leaf of the graph.
static bool are_logits(const ggml_tensor * t) {
    if (t->op == GGML_OP_ADD) return t->src[0]->op == GGML_OP_MUL_MAT && t->src[1]->op == GGML_OP_NONE;
    return t->op == GGML_OP_MUL_MAT;
}

// The logits that go into the gating function, where `t` is its output; null where `t` is no gate. Softmax, sigmoid and
// sqrt(softplus) are monotonic, so ranking by their input is ranking by their output.
static const ggml_tensor * gate_input(const ggml_tensor * t) {
    const ggml_tensor * input = nullptr;
    if (t->op == GGML_OP_SOFT_MAX && !t->src[1]) input = t->src[0];
    if (is_unary(t, GGML_UNARY_OP_SIGMOID)) input = t->src[0];
    if (t->op == GGML_OP_SQRT && is_unary(t->src[0], GGML_UNARY_OP_SOFTPLUS)) input = t->src[0]->src[0];
    return input && are_logits(router_rows_of(input)) ? input : nullptr;
}

// A gate's output plus the selection bias, a leaf of the graph.
static bool is_biased_gate(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD && gate_input(t->src[0]) && t->src[1]->op == GGML_OP_NONE;
}

// Scores of which the groups that were not chosen have been set to -inf.
static bool are_masked_by_group(const ggml_tensor * t) {
    const ggml_tensor * masked = t->op == GGML_OP_RESHAPE ? t->src[0] : nullptr;
    if (!masked || masked->op != GGML_OP_SET_ROWS) return false;
    const ggml_tensor * kept = masked->src[0];
    const ggml_tensor * rest = masked->src[2];
    float filled_with = 0;
    if (rest->op == GGML_OP_FILL) memcpy(&filled_with, rest->op_params, sizeof(filled_with));
    if (filled_with != -INFINITY || kept->op != GGML_OP_GET_ROWS || kept->src[0]->op != GGML_OP_RESHAPE) return false;
    const ggml_tensor * scores = kept->src[0]->src[0];
    return gate_input(scores) || is_biased_gate(scores);
}

static engine_select_by logits_kind(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD ? SELECT_BY_LOGITS_BIASED : SELECT_BY_LOGITS;
}

engine_status router_place_find(const ggml_tensor * topk, router_place & out) {
    const ggml_tensor * sorted = topk->op == GGML_OP_VIEW ? topk->src[0] : topk;
    const bool is_sorting = sorted->op == GGML_OP_ARGSORT && sorted->op_params[0] == GGML_SORT_ORDER_DESC && sorted != topk;
    if (!is_sorting || sorted->src[0]->type != GGML_TYPE_F32) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: the ids of the experts are not the first of sorted scores but come from %s, which is "
                            "not supported", topk->name, ggml_op_desc(sorted));
    }
    out = router_place();
    copy_name(out.topk, topk->name);
    const ggml_tensor * ranked = sorted->src[0];
    if (const ggml_tensor * input = gate_input(ranked)) {
        // They may be overwritten by the time of the choice, so they are copied when they have been computed, or moved.
        const ggml_tensor * logits = router_rows_of(input);
        copy_name(out.scores, logits->name);
        out.scores_move = input == logits;
        out.select_by = logits_kind(logits);
        if (is_router_node(logits)) return {};
        return status_error(ENGINE_MODEL_FORMAT, "%s: the router's logits are called '%s', under which they cannot be found again",
                            topk->name, logits->name);
    }
    out.scores_at_topk = true;
    if (are_logits(ranked)) {
        out.select_by = logits_kind(ranked);
        return {};
    }
    out.select_by = SELECT_BY_SELECTION_SCORE;
    if (is_biased_gate(ranked) || are_masked_by_group(ranked)) return {};
    return status_error(ENGINE_MODEL_FORMAT, "%s: the experts are chosen by '%s' (%s), an unknown rule; known are the router's logits, "
                        "a gate of them (softmax, sigmoid, sqrt of softplus), a gate with a selection bias, and groups of experts",
                        topk->name, ranked->name, ggml_op_desc(ranked));
}

void router_place_find_weights(const ggml_tensor * weights, router_place & out) {
    const bool by_ids = weights->op == GGML_OP_GET_ROWS && weights->src[1] && out.topk[0] != 0 && strcmp(weights->src[1]->name, out.topk) == 0;
    if (by_ids) copy_name(out.weights, weights->name);
}
