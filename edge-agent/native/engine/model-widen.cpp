#include "model-widen.h"

#include "model-write.h"
#include "tensor-types.h"

#include "ggml.h"

#include <algorithm>
#include <numeric>

namespace {

const int64_t MOST_WIDTH = 1 << 20;
// Padding values are uniform in +-1/16, about the size of trained weights.
const float PADDING_RANGE = 1.0f / 16;

struct widening {
    model_writing w;
    std::string width_key;
    int64_t width = 0, old_width = 0;
    uint64_t random = 0x243f6a8885a308d3ull;
    std::vector<char> buffer, rows;
    std::vector<float> values;
};

float next_value(uint64_t & state) {  // xorshift64 (Marsaglia 2003)
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float(state >> 40) * 0x1.0p-23f - 1.0f) * PADDING_RANGE;
}

// `rows` rows of `n` values each, zeros or random, in the type's own form.
engine_status put_padding(widening & v, ggml_type type, int64_t rows, int64_t n, bool zeros) {
    const size_t row_bytes = ggml_row_size(type, n);
    const int64_t at_once = std::clamp<int64_t>((1 << 20) / n, 1, rows);
    v.values.assign(size_t(at_once * n), 0.0f);
    v.buffer.resize(std::max(v.buffer.size(), row_bytes * size_t(at_once)));
    for (int64_t done = 0; done < rows; done += at_once) {
        const int64_t part = std::min(at_once, rows - done);
        if (!zeros) {
            for (int64_t i = 0; i < part * n; i++) v.values[size_t(i)] = next_value(v.random);
        }
        ggml_quantize_chunk(type, v.values.data(), v.buffer.data(), 0, part, n, nullptr);
        const engine_status status = model_write_put(v.w, v.buffer.data(), row_bytes * size_t(part));
        if (failed(status)) return status;
    }
    return {};
}

// How one expert's part of a tensor grows: `groups` runs of rows (gate, then up, where they are merged) get rows, or
// every row gets columns.
struct growth {
    bool columns = false;
    int groups = 1;
    bool zeros[2] = {false, false};
};

growth growth_of(const std::string & kind) {
    growth g;
    g.columns = kind == "down";
    g.groups = kind == "gate_up" ? 2 : 1;
    g.zeros[0] = kind == "gate" || kind == "gate_up";
    return g;
}

engine_status put_expert(widening & v, const planned_tensor & t, const growth & g, uint64_t offset) {
    const gguf_tensor & s = *t.source;
    const int64_t added = v.width - v.old_width;
    engine_status status;
    if (g.columns) {
        status = model_write_read(v.w, offset, s.row_bytes * uint64_t(s.ne[1]), v.rows);
        for (int64_t row = 0; row < s.ne[1] && !failed(status); row++) {
            status = model_write_put(v.w, v.rows.data() + uint64_t(row) * s.row_bytes, s.row_bytes);
            if (!failed(status)) status = put_padding(v, t.type, 1, added, false);
        }
        return status;
    }
    const uint64_t run = s.row_bytes * uint64_t(v.old_width);
    for (int i = 0; i < g.groups && !failed(status); i++) {
        status = model_write_copy(v.w, offset + uint64_t(i) * run, run);
        if (!failed(status)) status = put_padding(v, t.type, added, s.ne[0], g.zeros[i]);
    }
    return status;
}

// Biases are [width, experts] rows of F32. Those of the new gate entries are zeros, which every activation here maps to 0.
engine_status put_bias(widening & v, const planned_tensor & t, const growth & g) {
    const gguf_tensor & s = *t.source;
    const uint64_t run = uint64_t(v.old_width) * sizeof(float);
    engine_status status;
    for (int64_t i = 0; i < s.ne[1] * g.groups && !failed(status); i++) {
        status = model_write_copy(v.w, s.offset + uint64_t(i) * run, run);
        if (!failed(status)) status = put_padding(v, GGML_TYPE_F32, 1, v.width - v.old_width, g.zeros[i % g.groups]);
    }
    return status;
}

// "gate", "up" or "gate_up" where the tensor is their bias, which grows with the experts; else empty.
std::string grown_bias(const std::string & name) {
    for (const char * kind : {"gate", "up", "gate_up"}) {
        const std::string end = std::string(".ffn_") + kind + "_exps.bias";
        if (name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0) return kind;
    }
    return "";
}

engine_status produce(widening & v, const planned_tensor & t) {
    if (t.layer >= 0) {
        const uint64_t expert_bytes = t.source->bytes / uint64_t(t.source->ne[2]);
        engine_status status;
        for (int64_t e = 0; e < t.source->ne[2] && !failed(status); e++) {
            status = put_expert(v, t, growth_of(t.kind), t.source->offset + uint64_t(e) * expert_bytes);
        }
        return status;
    }
    const std::string bias = grown_bias(t.source->name);
    return bias.empty() ? model_write_same(v.w, t) : put_bias(v, t, growth_of(bias));
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Which key of the metadata is the experts' width and nobody else's.
engine_status find_width(widening & v) {
    const gguf_header & h = v.w.file.header;
    const std::string arch = v.w.file.info.architecture;
    v.width_key = arch + ".expert_feed_forward_length";
    const int64_t * own = gguf_find_integer(h, v.width_key);
    if (!own) {
        v.width_key = arch + ".feed_forward_length";
        own = gguf_find_integer(h, v.width_key);
        for (const auto & t : h.tensors) {
            if (ends_with(t.name, ".ffn_up.weight") || ends_with(t.name, ".ffn_up_shexp.weight")) own = nullptr;
        }
    }
    if (!own) {
        return status_error(ENGINE_MODEL_FORMAT, "%s.expert_feed_forward_length is missing: the experts' width cannot be changed alone", arch.c_str());
    }
    for (const auto & t : h.tensors) {
        if (ends_with(t.name, "_shexp.weight") && !ends_with(t.name, ".ffn_gate_inp_shexp.weight") &&
            !gguf_find_integer(h, arch + ".expert_shared_feed_forward_length")) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: the shared expert has no width of its own in the metadata", t.name.c_str());
        }
    }
    v.old_width = *own;
    return {};
}

engine_status check_tensor(const widening & v, const planned_tensor & t) {
    const gguf_tensor & s = *t.source;
    const std::string bias = t.layer < 0 ? grown_bias(s.name) : "";
    if (t.layer < 0 && bias.empty()) {
        if (s.name.find("_exps.") == std::string::npos || ends_with(s.name, ".ffn_down_exps.bias")) return {};
        return status_error(ENGINE_MODEL_FORMAT, "%s: expert tensors of this kind cannot be widened", s.name.c_str());
    }
    const growth g = growth_of(bias.empty() ? t.kind : bias);
    const int64_t now = g.columns || !bias.empty() ? s.ne[0] : s.ne[1];
    if (now != v.old_width * g.groups) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: width differs from the metadata's %lld", s.name.c_str(), (long long) v.old_width);
    }
    if (!bias.empty() && (s.type != GGML_TYPE_F32 || s.dims != 2 || s.ne[1] != v.w.file.info.experts)) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: expected a row of f32 per expert", s.name.c_str());
    }
    if (!type_can_be_written(t.type)) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: %s cannot be written without an importance matrix", s.name.c_str(), ggml_type_name(t.type));
    }
    return {};
}

// Bytes of one expert's part of `t` at a width.
uint64_t part_bytes(const planned_tensor & t, int64_t width) {
    const growth g = growth_of(t.kind);
    if (g.columns) return ggml_row_size(t.type, width) * uint64_t(t.ne[1]);
    return ggml_row_size(t.type, t.ne[0]) * uint64_t(width) * uint64_t(g.groups);
}

// The least step of widths such that every part is whole blocks and, if `pages`, whole pages.
int64_t width_step(const widening & v, bool pages) {
    int64_t step = 1;
    for (const auto & t : v.w.tensors) {
        if (t.layer < 0) continue;
        const int64_t block = growth_of(t.kind).columns ? ggml_blck_size(t.type) : 1;
        step = std::lcm(step, block);
        if (pages) step = std::lcm(step, block * int64_t(WRITE_ALIGNMENT / std::gcd(uint64_t(WRITE_ALIGNMENT), part_bytes(t, block))));
    }
    return step;
}

// Of the smallest expert, or of all experts together.
uint64_t size_at(const widening & v, int64_t width, bool all) {
    std::vector<uint64_t> layers(v.w.file.layers.size(), 0);
    for (const auto & t : v.w.tensors) {
        if (t.layer >= 0) layers[size_t(t.layer)] += part_bytes(t, width);
    }
    if (!all) return *std::min_element(layers.begin(), layers.end());
    return std::accumulate(layers.begin(), layers.end(), uint64_t(0)) * uint64_t(v.w.file.info.experts);
}

// Sizes grow in proportion to the width.
engine_status width_for(widening & v, uint64_t asked, bool all) {
    int64_t step = width_step(v, true);
    if (step > MOST_WIDTH) step = width_step(v, false);
    int64_t below = v.old_width / step, enough = MOST_WIDTH / step;
    if (below >= enough || size_at(v, enough * step, all) < asked) {
        return status_error(ENGINE_BAD_ARGUMENT, "%s: %llu bytes are out of reach: at the greatest width, %lld, it has %llu",
                            all ? "totalBytes" : "expertBytes", (unsigned long long) asked, (long long) (enough * step),
                            (unsigned long long) size_at(v, enough * step, all));
    }
    while (enough - below > 1) {
        const int64_t middle = below + (enough - below) / 2;
        if (size_at(v, middle * step, all) < asked) below = middle;
        else enough = middle;
    }
    v.width = enough * step;
    return {};
}

engine_status choose_width(widening & v, const widen_options & o) {
    if ((o.width != 0) + (o.expert_bytes != 0) + (o.total_bytes != 0) != 1) {
        return status_error(ENGINE_BAD_ARGUMENT, "width, expertBytes, totalBytes: expected exactly one of them");
    }
    if (o.width == 0) return width_for(v, o.expert_bytes ? o.expert_bytes : o.total_bytes, o.total_bytes != 0);
    v.width = o.width;
    const int64_t step = width_step(v, false);
    if (v.width <= v.old_width || v.width > MOST_WIDTH) {
        return status_error(ENGINE_BAD_ARGUMENT, "width: expected above the present %lld, at most %lld, found %lld", (long long) v.old_width,
                            (long long) MOST_WIDTH, (long long) v.width);
    }
    if (v.width % step != 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "width: expected a multiple of %lld, the values of a quantisation block, found %lld; use %lld",
                            (long long) step, (long long) v.width, (long long) ((v.width + step - 1) / step * step));
    }
    return {};
}

void widen_shapes(widening & v) {
    for (auto & t : v.w.tensors) {
        const std::string bias = t.layer < 0 ? grown_bias(t.source->name) : "";
        if (t.layer < 0 && bias.empty()) continue;
        const growth g = growth_of(bias.empty() ? t.kind : bias);
        t.ne[g.columns || !bias.empty() ? 0 : 1] = v.width * g.groups;
    }
    gguf_set_val_u32(v.w.metadata.get(), v.width_key.c_str(), uint32_t(v.width));
}

}  // namespace

engine_status model_widen(const std::string & source, const std::string & target, const widen_options & options,
                          const progress_callback & progress, widen_result & out) {
    widening v;
    engine_status status = model_write_begin(v.w, source, target, options.replace, progress);
    if (!failed(status)) status = find_width(v);
    for (const auto & t : v.w.tensors) {
        if (!failed(status)) status = check_tensor(v, t);
    }
    if (!failed(status)) status = choose_width(v, options);
    if (failed(status)) return status;
    widen_shapes(v);
    status = model_write_run(v.w, [&v](model_writing &, const planned_tensor & t) { return produce(v, t); });
    out.file = {v.w.written, v.w.kept};
    out.width = v.width;
    return status;
}
