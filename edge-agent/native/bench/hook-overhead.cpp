// What the hook costs: the engine with every expert in memory, the stock library without a hook, and the stock library
// stopping where the hook stops but doing nothing there, window by window in turns, in one process.
#include "stock-model.h"

#include "llama-runtime.h"

#include <cstdio>
#include <cstring>

namespace {

int fail(const std::string & what) {
    fprintf(stderr, "%s\n", what.c_str());
    return 1;
}

struct free_engine { void operator()(engine * e) const { engine_free(e); } };
using open_engine = std::unique_ptr<engine, free_engine>;

// With room for every expert.
engine_status engine_with_all(const stock_options & o, open_engine & out, engine_spec & spec) {
    model_info info;
    engine_status status = engine_inspect(o.model, info);
    if (failed(status)) return status;
    spec.capacities.assign(info.moe_layers.size(), info.experts);
    engine_open_options options;
    options.model_path = o.model;
    options.context_tokens = o.context;
    options.threads = o.threads;
    options.direct_io = false;
    options.spec = spec;
    engine * e = nullptr;
    status = engine_open(options, nullptr, nullptr, e);
    out.reset(e);
    return status;
}

bool stop_at_routers(ggml_tensor * t, bool ask, void *) {
    return !ask || strncmp(t->name, "ffn_moe_logits-", 15) == 0 || strncmp(t->name, "ffn_moe_topk-", 13) == 0;
}

void print_times(const char * name, const std::vector<int64_t> & ns) {
    printf("\"%s\":[", name);
    for (size_t i = 0; i < ns.size(); i++) printf("%s%lld", i ? "," : "", (long long) ns[i]);
    printf("]");
}

struct stock_arm {
    stock_model stock;
    std::vector<int64_t> ns;

    bool decode_window(const stock_options & o) {
        stock_restart(stock);
        for (int32_t i = 0; i < o.tokens; i++) {
            stock_token token;
            if (!stock_decode_token(stock, size_t(i), token)) return false;
            ns.push_back(token.end_ns - token.start_ns);
        }
        return true;
    }
};

}  // namespace

int hook_overhead(const stock_options & o) {
    stock_arm bare, stopping;
    std::string wrong = stock_open(o, bare.stock);
    stock_options hooked = o;
    hooked.hook = stop_at_routers;
    if (wrong.empty()) wrong = stock_open(hooked, stopping.stock);
    if (!wrong.empty()) return fail(wrong);
    open_engine ours;
    evaluate_request request;
    engine_status status = engine_with_all(o, ours, request.spec);
    if (failed(status)) return fail(status.message);

    request.context = o.tokens;
    request.stepped = true;
    for (int32_t pass = 0; pass < o.passes; pass++) request.tokens.insert(request.tokens.end(), bare.stock.tokens.begin(), bare.stock.tokens.end() - 1);
    request.tokens.push_back(bare.stock.tokens.back());
    // Between two windows of the engine the others decode theirs, in either order.
    const auto others = [&](int64_t done, int64_t) {
        const bool first = done / o.tokens % 2 == 0;
        return (first ? bare : stopping).decode_window(o) && (first ? stopping : bare).decode_window(o);
    };
    evaluate_result result;
    status = engine_evaluate(ours.get(), request, others, result);
    if (failed(status)) return fail(status.message);
    std::vector<int64_t> ns, misses;
    for (const evaluate_step & step : result.steps) {
        ns.push_back(step.end_ns - step.start_ns);
        misses.push_back(step.misses);
    }
    printf("{");
    print_times("engine", ns);
    printf(",");
    print_times("stock", bare.ns);
    printf(",");
    print_times("stops", stopping.ns);
    printf(",");
    print_times("misses", misses);
    printf("}\n");
    return 0;
}
