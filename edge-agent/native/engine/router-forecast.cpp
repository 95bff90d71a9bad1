#include "router-forecast.h"

#include "layer-hook.h"

#include <cmath>
#include <cstring>

namespace {

forecast_gate gate_of(const ggml_tensor * t) {
    if (t->op == GGML_OP_SOFT_MAX) return FORECAST_SOFTMAX;
    if (t->op == GGML_OP_SQRT) return FORECAST_SQRT_SOFTPLUS;
    return t->op == GGML_OP_UNARY && ggml_get_unary_op(t) == GGML_UNARY_OP_SIGMOID ? FORECAST_SIGMOID : FORECAST_NO_GATE;
}

bool is_bias(const ggml_tensor * t, int experts) {
    return t->op == GGML_OP_NONE && t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && ggml_nelements(t) == experts && t->data;
}

const float * floats(const ggml_tensor * t) { return static_cast<const float *>(t->data); }

// Eight sums, so that the compiler can keep them in vector registers.
float dot(const float * a, const float * b, int64_t n) {
    float sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] += a[i + j] * b[i + j];
    }
    for (; i < n; i++) sums[0] += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void apply_gate(forecast_gate gate, float * z, int n) {
    if (gate == FORECAST_NO_GATE) return;
    float highest = z[0], total = 0;
    for (int i = 1; i < n; i++) highest = std::fmax(highest, z[i]);
    for (int i = 0; i < n; i++) {
        if (gate == FORECAST_SOFTMAX) total += z[i] = std::exp(z[i] - highest);
        if (gate == FORECAST_SIGMOID) z[i] = 1 / (1 + std::exp(-z[i]));
        if (gate == FORECAST_SQRT_SOFTPLUS) z[i] = std::sqrt(std::log1p(std::exp(z[i])));
    }
    for (int i = 0; i < n && gate == FORECAST_SOFTMAX; i++) z[i] /= total;
}

void add(float * z, const ggml_tensor * bias, int n) {
    for (int i = 0; bias && i < n; i++) z[i] += floats(bias)[i];
}

}  // namespace

// Past views, gates, biases and masks.
const ggml_tensor * router_forecast_product(const ggml_tensor * t) {
    for (int step = 0; t && step < 16; step++) {
        if (t->op == GGML_OP_MUL_MAT) return t;
        t = t->src[0];
    }
    return nullptr;
}

void router_forecast_init(router_forecast & forecast, int layers, int experts) {
    forecast.routers.assign(size_t(layers), forecast_router());
    forecast.experts = experts;
    forecast.inputs = 0;
}

void router_forecast_note(router_forecast & forecast, int layer, const router_place & place, const ggml_tensor * topk) {
    forecast_router router;
    const ggml_tensor * product = nullptr;
    bool past_gate = place.scores_at_topk;  // scores taken at the choice are past the gate, those taken before are not
    for (const ggml_tensor * t = topk->src[0]; t && !product; t = t->src[0]) {
        if (t->op == GGML_OP_MUL_MAT) product = t;
        if (gate_of(t) != FORECAST_NO_GATE) {
            if (place.select_by == SELECT_BY_SELECTION_SCORE) router.gate = gate_of(t);
            past_gate = false;
        }
        if (t->op == GGML_OP_ADD && is_bias(t->src[1], forecast.experts)) {
            const bool selects = past_gate && place.select_by == SELECT_BY_SELECTION_SCORE;
            (selects ? router.selection_bias : router.gate_bias) = t->src[1];
        }
    }
    if (!product) return;
    const ggml_tensor * w = product->src[0];
    const bool readable = w->type == GGML_TYPE_F32 || ggml_get_type_traits(w->type)->to_float;
    if (!readable || !w->data || w->ne[1] != forecast.experts || w->ne[2] * w->ne[3] != 1 || w->ne[0] > (1 << 20)) return;
    if (forecast.inputs != 0 && forecast.inputs != w->ne[0]) return;
    forecast.inputs = w->ne[0];
    forecast.row.resize(size_t(w->ne[0]));
    router.weights = w;
    forecast.routers[size_t(layer)] = router;
}

const float * router_forecast_input(const router_forecast & forecast, const ggml_tensor * scores) {
    const ggml_tensor * product = router_forecast_product(scores);
    const ggml_tensor * input = product ? product->src[1] : nullptr;
    const bool fits = input && input->type == GGML_TYPE_F32 && input->ne[0] == forecast.inputs && input->data &&
                      ggml_nrows(input) == 1 && input->nb[0] == sizeof(float);
    return fits ? floats(input) : nullptr;
}

bool router_forecast_apply(router_forecast & forecast, int layer, const float * input, float * scores) {
    const forecast_router & router = forecast.routers[size_t(layer)];
    const ggml_tensor * w = router.weights;
    if (!w) return false;
    for (int e = 0; e < forecast.experts; e++) {
        const void * row = static_cast<const char *>(w->data) + size_t(e) * w->nb[1];
        if (w->type != GGML_TYPE_F32) {
            ggml_get_type_traits(w->type)->to_float(row, forecast.row.data(), w->ne[0]);
            row = forecast.row.data();
        }
        scores[e] = dot(static_cast<const float *>(row), input, w->ne[0]);
    }
    add(scores, router.gate_bias, forecast.experts);
    apply_gate(router.gate, scores, forecast.experts);
    add(scores, router.selection_bias, forecast.experts);
    return true;
}
