// Which rules of selection are recognised, on graphs built by hand; anything else is refused by name.
#include "router-place.h"

#include "check.h"

#include <cstring>
#include <memory>

static const int EXPERTS = 8, ROWS = 2, TOP_K = 3, GROUPS = 4;

struct graph {
    ggml_context * c = ggml_init({1 << 20, nullptr, true});
    ggml_tensor * logits = nullptr;
    graph() {
        ggml_tensor * router = ggml_new_tensor_2d(c, GGML_TYPE_F32, 16, EXPERTS);
        ggml_tensor * input = ggml_new_tensor_2d(c, GGML_TYPE_F32, 16, ROWS);
        logits = named(ggml_mul_mat(c, router, input), "ffn_moe_logits-5");
    }
    ~graph() { ggml_free(c); }
    static ggml_tensor * named(ggml_tensor * t, const char * name) { return ggml_set_name(t, name); }
    ggml_tensor * bias() { return ggml_new_tensor_1d(c, GGML_TYPE_F32, EXPERTS); }
    ggml_tensor * biased_logits() { return named(ggml_add(c, logits, bias()), "ffn_moe_logits_biased-5"); }
    ggml_tensor * masked(ggml_tensor * scores, float filling) {
        ggml_tensor * groups = ggml_reshape_3d(c, scores, EXPERTS / GROUPS, GROUPS, ROWS);
        ggml_tensor * chosen = ggml_new_tensor_2d(c, GGML_TYPE_I32, 2, ROWS);
        ggml_tensor * kept = ggml_get_rows(c, groups, chosen);
        ggml_tensor * out = ggml_set_rows(c, ggml_fill(c, groups, filling), kept, chosen);
        return named(ggml_reshape_2d(c, out, EXPERTS, ROWS), "ffn_moe_probs_masked-5");
    }
    ggml_tensor * topk(ggml_tensor * ranked) { return named(ggml_argsort_top_k(c, ranked, TOP_K), "ffn_moe_topk-5"); }
};

static void is_found(graph & g, ggml_tensor * ranked, engine_select_by select_by, const char * scores) {
    router_place place;
    REQUIRE_OK(router_place_find(g.topk(ranked), place));
    CHECK_EQUAL(place.select_by, select_by);
    CHECK_EQUAL(place.scores_at_topk, scores == nullptr);
    CHECK(strcmp(place.scores, scores ? scores : "") == 0);
    CHECK(strcmp(place.topk, "ffn_moe_topk-5") == 0);
}

static void is_refused(ggml_tensor * topk, const char * because) {
    router_place place;
    const engine_status status = router_place_find(topk, place);
    CHECK_EQUAL(status.code, ENGINE_MODEL_FORMAT);
    CHECK(strstr(status.message, topk->name) != nullptr && strstr(status.message, because) != nullptr);
    if (!strstr(status.message, because)) fprintf(stderr, "  '%s' does not speak of '%s'\n", status.message, because);
}

int main() {
    graph g;
    ggml_context * c = g.c;
    ggml_tensor * softmax = ggml_soft_max(c, g.logits);
    ggml_tensor * sigmoid = ggml_sigmoid(c, g.logits);
    ggml_tensor * sqrt_softplus = ggml_sqrt(c, ggml_softplus(c, g.logits));
    for (ggml_tensor * gate : {softmax, sigmoid, sqrt_softplus}) {
        is_found(g, gate, SELECT_BY_LOGITS, "ffn_moe_logits-5");
        is_found(g, ggml_add(c, gate, g.bias()), SELECT_BY_SELECTION_SCORE, nullptr);
        is_found(g, g.masked(gate, -INFINITY), SELECT_BY_SELECTION_SCORE, nullptr);
        is_found(g, g.masked(ggml_add(c, gate, g.bias()), -INFINITY), SELECT_BY_SELECTION_SCORE, nullptr);
    }
    is_found(g, ggml_soft_max(c, g.biased_logits()), SELECT_BY_LOGITS_BIASED, "ffn_moe_logits_biased-5");
    is_found(g, ggml_sigmoid(c, g.biased_logits()), SELECT_BY_LOGITS_BIASED, "ffn_moe_logits_biased-5");
    is_found(g, g.logits, SELECT_BY_LOGITS, nullptr);
    is_found(g, g.biased_logits(), SELECT_BY_LOGITS_BIASED, nullptr);

    const auto unknown = [&](ggml_tensor * ranked, const char * name) { is_refused(g.topk(g.named(ranked, name)), name); };
    unknown(ggml_scale(c, softmax, -1), "worst_first");
    unknown(ggml_sqr(c, g.logits), "squared");
    unknown(ggml_gelu(c, g.logits), "gelu_gate");
    unknown(ggml_mul(c, softmax, g.bias()), "weighted_gate");
    unknown(ggml_add(c, softmax, sigmoid), "sum_of_gates");
    unknown(ggml_add(c, ggml_sqr(c, g.logits), g.bias()), "biased_square");
    unknown(ggml_soft_max(c, ggml_sqr(c, g.logits)), "gate_of_squares");
    unknown(g.masked(softmax, 0), "masked_with_zeros");
    unknown(g.masked(ggml_sqr(c, g.logits), -INFINITY), "masked_squares");
    unknown(ggml_new_tensor_2d(c, GGML_TYPE_F32, EXPERTS, ROWS), "an_input");
    const ggml_tensor * mask = ggml_new_tensor_2d(c, GGML_TYPE_F32, EXPERTS, ROWS);
    unknown(ggml_soft_max_ext(c, g.logits, const_cast<ggml_tensor *>(mask), 1, 0), "masked_softmax");

    ggml_tensor * ascending = ggml_argsort(c, softmax, GGML_SORT_ORDER_ASC);
    is_refused(g.named(ggml_view_2d(c, ascending, TOP_K, ROWS, ascending->nb[1], 0), "ffn_moe_topk-5"), "ARGSORT");
    is_refused(g.named(ggml_top_k(c, softmax, TOP_K), "ffn_moe_topk-5"), "TOP_K");
    ggml_tensor * by_table = ggml_get_rows(c, ggml_new_tensor_2d(c, GGML_TYPE_I32, TOP_K, 100), ggml_new_tensor_1d(c, GGML_TYPE_I32, ROWS));
    is_refused(g.named(by_table, "ffn_moe_topk-5"), "GET_ROWS");
    is_refused(g.named(ggml_new_tensor_2d(c, GGML_TYPE_I32, TOP_K, ROWS), "ffn_moe_topk-5"), "NONE");
    g.named(g.logits, "router_output-5");
    is_refused(g.topk(ggml_soft_max(c, g.logits)), "router_output-5");
    return checks_done();
}
