#include "model-quantize.h"

#include "llama-runtime.h"
#include "model-write.h"
#include "tensor-types.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

namespace {

struct quantizing {
    model_writing w;
    int threads = 1;
    std::vector<char> in, out;
    std::vector<float> values;      // of one expert's part
    double error = 0, power = 0;    // sums of squares: of what quantising changed, of what was there
};

// What a thread did with its rows.
struct row_range {
    int64_t first = 0, count = 0;
    double error = 0, power = 0;
};

void to_floats(ggml_type type, const char * from, float * to, int64_t n) {
    if (type == GGML_TYPE_F32) memcpy(to, from, size_t(n) * sizeof(float));
    else ggml_get_type_traits(type)->to_float(from, to, n);
}

void quantize_rows(quantizing & q, const planned_tensor & t, row_range & range) {
    const int64_t n = t.ne[0];
    const size_t to_bytes = ggml_row_size(t.type, n);
    std::vector<float> again(static_cast<size_t>(n));
    for (int64_t row = range.first; row < range.first + range.count; row++) {
        float * values = q.values.data() + row * n;
        char * to = q.out.data() + size_t(row) * to_bytes;
        to_floats(ggml_type(t.source->type), q.in.data() + uint64_t(row) * t.source->row_bytes, values, n);
        ggml_quantize_chunk(t.type, values, to, 0, 1, n, nullptr);
        to_floats(t.type, to, again.data(), n);
        for (int64_t i = 0; i < n; i++) {
            range.error += double(again[size_t(i)] - values[i]) * double(again[size_t(i)] - values[i]);
            range.power += double(values[i]) * double(values[i]);
        }
    }
}

engine_status put_expert(quantizing & q, const planned_tensor & t, int64_t expert) {
    const uint64_t bytes = t.source->row_bytes * uint64_t(t.ne[1]);
    engine_status status = model_write_read(q.w, t.source->offset + uint64_t(expert) * bytes, bytes, q.in);
    if (failed(status)) return status;
    q.out.resize(ggml_row_size(t.type, t.ne[0]) * size_t(t.ne[1]));
    q.values.resize(size_t(t.ne[0] * t.ne[1]));
    std::vector<row_range> ranges(size_t(std::min<int64_t>(q.threads, t.ne[1])));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < ranges.size(); i++) {
        ranges[i].first = t.ne[1] * int64_t(i) / int64_t(ranges.size());
        ranges[i].count = t.ne[1] * int64_t(i + 1) / int64_t(ranges.size()) - ranges[i].first;
        if (i + 1 < ranges.size()) threads.emplace_back(quantize_rows, std::ref(q), std::cref(t), std::ref(ranges[i]));
    }
    quantize_rows(q, t, ranges.back());
    for (auto & thread : threads) thread.join();
    for (const auto & range : ranges) {
        q.error += range.error;
        q.power += range.power;
    }
    return model_write_put(q.w, q.out.data(), q.out.size());
}

engine_status produce(quantizing & q, const planned_tensor & t) {
    if (t.layer < 0) return model_write_same(q.w, t);
    engine_status status;
    for (int64_t e = 0; e < t.ne[2] && !failed(status); e++) status = put_expert(q, t, e);
    return status;
}

engine_status type_of(const std::string & name, ggml_type & out) {
    out = quantised_type_named(name);
    if (out != GGML_TYPE_COUNT) return {};
    std::string all;
    for (const ggml_type type : quantised_types()) all += (all.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    return status_error(ENGINE_BAD_ARGUMENT, "type: '%.40s' is unknown, or needs an importance matrix; choose one of %s", name.c_str(), all.c_str());
}

engine_status check_tensor(const planned_tensor & t, ggml_type type, bool requantize) {
    const ggml_type now = ggml_type(t.source->type);
    const char * name = t.source->name.c_str();
    if (t.ne[0] % ggml_blck_size(type) != 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "%s: %s comes in blocks of %lld values, and its rows have %lld; types that fit: %s", name,
                            ggml_type_name(type), (long long) ggml_blck_size(type), (long long) t.ne[0], quantised_types_for_rows(t.ne[0]).c_str());
    }
    if (ggml_is_quantized(now) && !requantize) {
        return status_error(ENGINE_BAD_ARGUMENT, "%s: is quantised already (%s); quantising again adds its loss to that. Start from the f16 or bf16 "
                            "file, or allow it (--allow-requantize)", name, ggml_type_name(now));
    }
    if (now != GGML_TYPE_F32 && ggml_get_type_traits(now)->to_float == nullptr) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: %s cannot be turned into numbers", name, ggml_type_name(now));
    }
    return {};
}

engine_status plan_types(quantizing & q, const quantize_options & o) {
    ggml_type type, down;
    engine_status status = type_of(o.type, type);
    if (!failed(status)) status = type_of(o.down_type.empty() ? o.type : o.down_type, down);
    if (failed(status)) return status;
    for (auto & t : q.w.tensors) {
        if (t.layer < 0) continue;
        const ggml_type to = t.kind == "down" ? down : type;
        status = check_tensor(t, to, o.requantize);
        if (failed(status)) return status;
        t.type = to;
        ggml_quantize_init(to);  // its tables are made once, before there are threads
    }
    // The stock library tells a file's type from its tensors where the metadata does not.
    gguf_remove_key(q.w.metadata.get(), "general.file_type");
    gguf_set_val_u32(q.w.metadata.get(), "general.quantization_version", GGML_QNT_VERSION);
    return {};
}

}  // namespace

engine_status model_quantize(const std::string & source, const std::string & target, const quantize_options & options,
                             const progress_callback & progress, quantize_result & out) {
    quantizing q;
    if (options.threads < 0 || options.threads > 512) {
        return status_error(ENGINE_BAD_ARGUMENT, "threads: expected 0 to 512, found %d", options.threads);
    }
    q.threads = options.threads ? options.threads : default_threads();
    engine_status status = model_write_begin(q.w, source, target, options.replace, progress);
    if (!failed(status)) status = plan_types(q, options);
    if (!failed(status)) status = model_write_run(q.w, [&q](model_writing &, const planned_tensor & t) { return produce(q, t); });
    out.file = {q.w.written, q.w.kept};
    out.relative_error = q.power > 0 ? std::sqrt(q.error / q.power) : 0;
    return status;
}
