// Fits the maps of forecast-map.h: one pass over windows of a text under the model's own routing gives, for each MoE
// layer but the first, the normal equations of its scores on the features of the layer before it; ridge regression solves
// them. The windows at the end are not fitted but scored, with the bare router beside.
#include "engine-state.h"

#include "forecast-map.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

// Adds to the diagonal, relative to its mean: enough to keep experts that a text hardly selects from being overfitted.
const double RIDGE = 1e-4;
const uint64_t MOST_EQUATION_BYTES = uint64_t(4) << 30;

struct equations {
    std::vector<double> squares;   // features x features, lower triangle
    std::vector<double> products;  // features x experts
};

struct fitting {
    engine & e;
    const fit_request & request;
    fit_result & result;
    forecast_map map;
    int64_t features = 0;
    std::vector<equations> of;     // per MoE layer; the first stays empty
    bool scoring = false;

    // of the layer before the one seen next
    int last_layer = -1;
    int64_t last_rows = 0;
    std::vector<float> rows;                    // batch x features
    std::vector<std::vector<float>> previous;   // per layer: the last scores of the window, zeros at its start
    std::vector<float> scores, next_previous;   // scratch
    std::vector<int32_t> order, selected;
    std::vector<expert_cache> caches;           // per layer, for the held-out windows
    std::vector<double> shared_before, shared_after, slots;  // per layer
    bool bad_shape = false;
};

void select_top(fitting & f, const float * z, int k) {
    const int n = f.map.experts;
    for (int e = 0; e < n; e++) f.order[size_t(e)] = e;
    std::partial_sort(f.order.begin(), f.order.begin() + k, f.order.end(), [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; });
}

void add_row(equations & q, int64_t features, int experts, const float * x, const float * z) {
    for (int64_t i = 0; i < features; i++) {
        const double xi = x[i];
        if (xi == 0) continue;
        double * squares = q.squares.data() + i * features;
        for (int64_t j = 0; j <= i; j++) squares[j] += xi * x[j];
        double * products = q.products.data() + i * experts;
        for (int e = 0; e < experts; e++) products[e] += xi * z[e];
    }
}

// How many of the true top-K are among the first K of a forecast, and how many absent ones among its first 1.5 K absentees.
void score_forecast(fitting & f, int layer, const float * forecast, const std::vector<int32_t> & truth, double & shared, int64_t & found) {
    const int k = f.e.file.info.top_k;
    const auto is_selected = [&](int32_t e) { return std::find(truth.begin(), truth.end(), e) != truth.end(); };
    select_top(f, forecast, f.map.experts);
    for (int i = 0; i < k; i++) shared += is_selected(f.order[size_t(i)]);
    const uint8_t * resident = f.caches[size_t(layer)].resident.data();
    int guesses = 0;
    for (int i = 0; i < f.map.experts && guesses < k + k / 2; i++) {
        const int32_t e = f.order[size_t(i)];
        if (resident[e]) continue;
        guesses++;
        found += is_selected(e);
    }
}

void score_row(fitting & f, int layer, const float * x, const float * z) {
    const int k = f.e.file.info.top_k;
    select_top(f, z, k);
    f.selected.assign(f.order.begin(), f.order.begin() + k);
    fit_layer & out = f.result.layers[size_t(layer - 1)];
    std::vector<float> forecast(size_t(f.map.experts));
    if (router_forecast_apply(f.e.hook.prefetch.forecast, layer, x, forecast.data())) {
        score_forecast(f, layer, forecast.data(), f.selected, f.shared_before[size_t(layer)], out.found_before);
    }
    forecast_map_apply(forecast_map_of(f.map, layer), f.features, f.map.experts, x, forecast.data());
    score_forecast(f, layer, forecast.data(), f.selected, f.shared_after[size_t(layer)], out.found_after);
    f.slots[size_t(layer)] += k;
    int32_t missed[ROUTE_MAX_K], evicted[ROUTE_MAX_K];
    cache_event event{0, 0, 0, missed, evicted};
    expert_cache_event(f.caches[size_t(layer)], f.selected.data(), k, event);
    out.absent += event.misses;
}

// The features of this layer's rows, for the layer after it.
void keep_features(fitting & f, int layer, const ggml_tensor * scores, const float * z, int64_t rows) {
    const ggml_tensor * input = router_forecast_product(scores)->src[1];
    const int k = f.e.file.info.top_k;
    std::vector<float> & before = f.previous[size_t(layer + 1)];
    for (int64_t r = 0; r < rows; r++) {
        float * x = f.rows.data() + r * f.features;
        memcpy(x, static_cast<const char *>(input->data) + size_t(r) * input->nb[1], size_t(f.map.inputs) * sizeof(float));
        select_top(f, z + r * f.map.experts, k);
        forecast_features_fill(x + f.map.inputs, f.map.experts, z + r * f.map.experts, f.order.data(), k, before.data());
    }
}

void see_scores(void * data, int layer, const ggml_tensor * scores, const float * z, int64_t rows) {
    fitting & f = *static_cast<fitting *>(data);
    const int experts = f.map.experts;
    if (!std::all_of(z, z + rows * experts, [](float v) { return std::isfinite(v); })) f.bad_shape = true;  // masked groups
    if (f.bad_shape) return;
    if (layer > 0) {
        if (f.last_layer != layer - 1 || f.last_rows != rows) {
            f.bad_shape = true;
            return;
        }
        for (int64_t r = 0; r < rows; r++) {
            float * x = f.rows.data() + r * f.features;
            // The scores of the token before are known only now.
            const float * before = r == 0 ? f.previous[size_t(layer)].data() : z + (r - 1) * experts;
            std::copy(before, before + experts, x + f.map.inputs + experts);
            if (f.scoring) score_row(f, layer, x, z + r * experts);
            else add_row(f.of[size_t(layer)], f.features, experts, x, z + r * experts);
        }
        std::copy(z + (rows - 1) * experts, z + rows * experts, f.previous[size_t(layer)].begin());
    }
    const ggml_tensor * product = router_forecast_product(scores);
    const ggml_tensor * input = product ? product->src[1] : nullptr;
    if (!input || input->type != GGML_TYPE_F32 || input->ne[0] != f.map.inputs || ggml_nrows(input) != rows ||
        size_t(rows) * size_t(f.features) > f.rows.size()) {
        f.bad_shape = true;
        return;
    }
    if (layer + 1 < f.map.layers) keep_features(f, layer, scores, z, rows);
    f.last_layer = layer;
    f.last_rows = rows;
}

// Solves (squares + ridge) x = products in place, by Cholesky; false where the matrix is not positive definite.
bool solve(equations & q, int64_t n, int experts) {
    double trace = 0;
    for (int64_t i = 0; i < n; i++) trace += q.squares[size_t(i * n + i)];
    for (int64_t i = 0; i < n; i++) q.squares[size_t(i * n + i)] += RIDGE * trace / double(n);
    double * a = q.squares.data();
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++) {
            double sum = a[i * n + j];
            for (int64_t k = 0; k < j; k++) sum -= a[i * n + k] * a[j * n + k];
            if (i == j && !(sum > 0)) return false;
            a[i * n + j] = i == j ? std::sqrt(sum) : sum / a[j * n + j];
        }
    }
    double * b = q.products.data();
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < i; k++) {
            for (int e = 0; e < experts; e++) b[i * experts + e] -= a[i * n + k] * b[k * experts + e];
        }
        for (int e = 0; e < experts; e++) b[i * experts + e] /= a[i * n + i];
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        for (int64_t k = i + 1; k < n; k++) {
            for (int e = 0; e < experts; e++) b[i * experts + e] -= a[k * n + i] * b[k * experts + e];
        }
        for (int e = 0; e < experts; e++) b[i * experts + e] /= a[i * n + i];
    }
    return true;
}

engine_status solve_layers(fitting & f) {
    f.map.coefficients.resize(size_t(f.map.layers - 1) * size_t(f.features) * size_t(f.map.experts));
    for (int l = 1; l < f.map.layers; l++) {
        equations & q = f.of[size_t(l)];
        if (!solve(q, f.features, f.map.experts)) {
            return status_error(ENGINE_INTERNAL, "blk.%d: its normal equations have no solution; give more text", f.e.file.info.moe_layers[size_t(l)]);
        }
        for (size_t i = 0; i < q.products.size(); i++) forecast_map_of(f.map, l)[i] = float(q.products[i]);
        q = equations();
    }
    return {};
}

engine_status check_request(const engine & e, const fit_request & r) {
    const model_info & info = e.file.info;
    const router_forecast & forecast = e.hook.prefetch.forecast;
    if (r.context < 1 || r.context > (1 << 20)) return status_error(ENGINE_BAD_ARGUMENT, "context: expected 1 to %d, found %d", 1 << 20, r.context);
    const int64_t windows = (int64_t(r.tokens.size()) - 1) / r.context;
    if (windows < 2 || r.held_out_windows < 1 || r.held_out_windows >= windows) {
        return status_error(ENGINE_BAD_ARGUMENT, "tokens: expected whole windows of %d, at least one to fit and one to hold out; found %lld "
                            "windows, of which %d held out", r.context, (long long) windows, r.held_out_windows);
    }
    if (r.capacity < info.top_k || r.capacity > info.experts) {
        return status_error(ENGINE_BAD_ARGUMENT, "capacity: expected %d to %d, found %d", info.top_k, info.experts, r.capacity);
    }
    if (info.moe_layers.size() < 2) return status_error(ENGINE_BAD_ARGUMENT, "one layer with experts leaves nothing to foretell");
    if (forecast_fingerprint(forecast) == 0) {
        return status_error(ENGINE_MODEL_FORMAT, "the routers of %s are not plain matrices of one width, which fitting needs", info.path.c_str());
    }
    const uint64_t features = uint64_t(forecast_features(forecast.inputs, info.experts));
    const uint64_t bytes = (info.moe_layers.size() - 1) * features * (features + uint64_t(info.experts)) * sizeof(double);
    if (bytes > MOST_EQUATION_BYTES) {
        return status_error(ENGINE_CAPACITY, "the normal equations of %zu layers with %llu features take %llu bytes, more than the %llu allowed",
                            info.moe_layers.size() - 1, (unsigned long long) features, (unsigned long long) bytes, (unsigned long long) MOST_EQUATION_BYTES);
    }
    return engine_check_tokens(e, r.tokens);
}

engine_status run_windows(fitting & f, llama_context * context, pass_batch & batch, int32_t batch_tokens, const progress_callback & progress) {
    engine & e = f.e;
    const int32_t length = f.request.context;
    const int64_t windows = (int64_t(f.request.tokens.size()) - 1) / length;
    for (int64_t w = 0; w < windows; w++) {
        if (!f.scoring && w == windows - f.request.held_out_windows) {
            const engine_status status = solve_layers(f);
            if (failed(status)) return status;
            f.scoring = true;
        }
        llama_memory_clear(llama_get_memory(context), false);
        for (auto & scores : f.previous) std::fill(scores.begin(), scores.end(), 0.0f);
        for (int32_t at = 0; at < length;) {
            if (e.hook.cancelled.load()) return status_error(ENGINE_CANCELLED, "the fit was cancelled");
            const int32_t part = std::min(batch_tokens, length - at);
            f.last_layer = -1;
            const engine_status status = engine_run_pass(e, context, batch, f.request.tokens.data() + w * length + at, part, at, OUTPUTS_ALL, PASS_ROUTED);
            if (failed(status)) return status;
            if (f.bad_shape) return status_error(ENGINE_MODEL_FORMAT, "the graph does not show its routers' inputs, which fitting needs");
            at += part;
        }
        if (progress && !progress(w + 1, windows)) return status_error(ENGINE_CANCELLED, "the fit was cancelled");
    }
    return {};
}

void prepare(fitting & f) {
    const model_info & info = f.e.file.info;
    f.map.layers = int(info.moe_layers.size());
    f.map.experts = info.experts;
    f.map.inputs = f.e.hook.prefetch.forecast.inputs;
    f.features = forecast_features(f.map.inputs, f.map.experts);
    f.of.resize(info.moe_layers.size());
    for (size_t l = 1; l < f.of.size(); l++) {
        f.of[l].squares.assign(size_t(f.features * f.features), 0);
        f.of[l].products.assign(size_t(f.features) * size_t(f.map.experts), 0);
    }
    f.previous.assign(info.moe_layers.size() + 1, std::vector<float>(size_t(f.map.experts), 0));
    f.order.resize(size_t(f.map.experts));
    f.caches.resize(info.moe_layers.size());
    for (auto & cache : f.caches) expert_cache_init(cache, info.experts, f.request.capacity);
    f.shared_before.assign(f.of.size(), 0);
    f.shared_after.assign(f.of.size(), 0);
    f.slots.assign(f.of.size(), 0);
    for (size_t l = 1; l < f.of.size(); l++) {
        fit_layer layer;
        layer.layer = info.moe_layers[l];
        f.result.layers.push_back(layer);
    }
}

engine_status fit(fitting & f, const progress_callback & progress) {
    engine & e = f.e;
    prepare(f);
    const int64_t by_output = (int64_t(64) << 20) / (int64_t(sizeof(float)) * llama_vocab_n_tokens(e.vocab));
    int32_t batch_tokens = int32_t(std::clamp<int64_t>(by_output, 1, std::min(f.request.context, 512)));
    if (!e.options.keep_all) batch_tokens = std::max(1, engine_batch_limit(e, {}, batch_tokens));
    f.rows.resize(size_t(batch_tokens) * size_t(f.features));
    llama_context * context = nullptr;
    engine_status status = engine_make_context(e, f.request.context, batch_tokens, batch_tokens, context);
    if (failed(status)) return status;
    engine_spec spec;
    spec.capacities.assign(size_t(f.map.layers), f.map.experts);
    spec.prefetch = PREFETCH_OFF;
    layer_states layers;
    layer_states_init(layers, f.map.experts, spec);
    layer_hook_follow(e.hook, spec);
    e.hook.layers = &layers;
    e.hook.owner = &e.layers;
    e.hook.ring = nullptr;
    e.hook.see_scores = see_scores;
    e.hook.see_data = &f;
    pass_batch batch;
    pass_batch_init(batch, batch_tokens);
    status = run_windows(f, context, batch, batch_tokens, progress);
    e.hook.see_scores = nullptr;
    pass_batch_free(batch);
    llama_free(context);
    if (failed(status)) return status;
    for (size_t l = 1; l < f.of.size(); l++) {
        f.result.layers[l - 1].shared_before = f.shared_before[l] / f.slots[l];
        f.result.layers[l - 1].shared_after = f.shared_after[l] / f.slots[l];
    }
    f.result.path = forecast_map_path(e.file.info.path);
    f.result.bytes = 32 + f.map.coefficients.size() * sizeof(float);
    return forecast_map_write(f.result.path, f.map, forecast_fingerprint(e.hook.prefetch.forecast));
}

}  // namespace

engine_status engine_fit_prefetch(engine * e, const fit_request & request, const progress_callback & progress, fit_result & out) {
    engine_status status = request.begun ? engine_status() : engine_begin(e, EVALUATE_REQUEST_ID);
    if (failed(status)) return status;
    try {
        warm_fill_yield(e->warm);
        out = fit_result();
        status = check_request(*e, request);
        if (!failed(status)) {
            fitting f{*e, request, out};
            status = fit(f, progress);
        }
    } catch (const std::exception & error) {
        status = status_error(ENGINE_INTERNAL, "fit-prefetch: %s", error.what());
    }
    e->hook.layers = e->hook.owner = &e->layers;
    engine_end_request(*e);
    return status;
}
