#include "router-place.h"

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

// The input of the gating function, where `t` is its output; null where `t` is no gate.
static const ggml_tensor * gate_input(const ggml_tensor * t) {
    if (t->op == GGML_OP_SOFT_MAX || is_unary(t, GGML_UNARY_OP_SIGMOID)) return t->src[0];
    if (t->op == GGML_OP_SQRT && t->src[0] && is_unary(t->src[0], GGML_UNARY_OP_SOFTPLUS)) return t->src[0]->src[0];
    return nullptr;
}

// Logits straight from the router's matrix, with or without its bias.
static bool are_logits(const ggml_tensor * t) {
    if (t->op == GGML_OP_ADD && t->src[0]) t = t->src[0];
    return t->op == GGML_OP_MUL_MAT;
}

static engine_select_by logits_kind(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD ? SELECT_BY_LOGITS_BIASED : SELECT_BY_LOGITS;
}

engine_status router_place_find(const ggml_tensor * topk, router_place & out) {
    const ggml_tensor * sorted = topk->src[0];
    if (!sorted || sorted->op != GGML_OP_ARGSORT || !sorted->src[0] || sorted->src[0]->type != GGML_TYPE_F32) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: the experts are not chosen by sorting scores, which is not supported", topk->name);
    }
    out = router_place();
    copy_name(out.topk, topk->name);
    const ggml_tensor * ranked = sorted->src[0];
    const ggml_tensor * logits = gate_input(ranked);
    if (logits && are_logits(logits) && logits->name[0] != 0) {
        // The gate is monotonic, so ranking by its input is ranking by its output. The input may be overwritten by
        // then, so it is copied when it has been computed.
        copy_name(out.scores, logits->name);
        out.select_by = logits_kind(logits);
        return {};
    }
    out.scores_at_topk = true;
    out.select_by = are_logits(ranked) ? logits_kind(ranked) : SELECT_BY_SELECTION_SCORE;
    return {};
}

void router_place_find_weights(const ggml_tensor * weights, router_place & out) {
    const bool by_ids = weights->op == GGML_OP_GET_ROWS && weights->src[1] && out.topk[0] != 0 && strcmp(weights->src[1]->name, out.topk) == 0;
    if (by_ids) copy_name(out.weights, weights->name);
}
