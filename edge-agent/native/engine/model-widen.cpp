#include "model-widen.h"

#include "file-descriptor.h"
#include "model-file.h"

#include "ggml.h"
#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <unistd.h>

namespace {

const size_t ALIGNMENT = 4096;
const size_t COPY_BYTES = 4 << 20;
// Padding values are uniform in +-1/16, about the size of trained weights.
const float PADDING_RANGE = 1.0f / 16;

struct free_gguf { void operator()(gguf_context * g) const { gguf_free(g); } };
struct free_ggml { void operator()(ggml_context * g) const { ggml_free(g); } };
using gguf_ptr = std::unique_ptr<gguf_context, free_gguf>;
using ggml_ptr = std::unique_ptr<ggml_context, free_ggml>;

struct widening {
    model_file file;
    int64_t width = 0, old_width = 0;
    file_descriptor in, out;
    std::string target;
    gguf_ptr header;
    ggml_ptr shapes;
    const progress_callback * progress = nullptr;
    uint64_t written = 0, total = 0, reported = 0;
    uint64_t random = 0x243f6a8885a308d3ull;  // fixed seed: the same call writes the same file
    std::vector<char> buffer;
    std::vector<float> values;
};

float next_value(uint64_t & state) {  // xorshift64 (Marsaglia 2003)
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (float(state >> 40) * 0x1.0p-23f - 1.0f) * PADDING_RANGE;
}

engine_status write_all(widening & w, const char * data, size_t n) {
    while (n > 0) {
        const ssize_t put = write(w.out.fd, data, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return status_error(ENGINE_IO, "%s: %s", w.target.c_str(), strerror(errno));
        data += put;
        n -= size_t(put);
        w.written += uint64_t(put);
    }
    if (*w.progress && w.written - w.reported >= (32u << 20)) {
        w.reported = w.written;
        if (!(*w.progress)(int64_t(w.written), int64_t(w.total))) {
            return status_error(ENGINE_CANCELLED, "%s: cancelled", w.target.c_str());
        }
    }
    return {};
}

engine_status copy_bytes(widening & w, uint64_t offset, uint64_t n) {
    w.buffer.resize(COPY_BYTES);
    while (n > 0) {
        const ssize_t got = pread(w.in.fd, w.buffer.data(), size_t(std::min<uint64_t>(n, COPY_BYTES)), off_t(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return status_error(ENGINE_IO, "%s: %s", w.file.info.path.c_str(), got < 0 ? strerror(errno) : "the file ended early");
        const engine_status status = write_all(w, w.buffer.data(), size_t(got));
        if (failed(status)) return status;
        offset += uint64_t(got);
        n -= uint64_t(got);
    }
    return {};
}

// `rows` rows of `n` values each, zeros or random, in the tensor's own type.
engine_status write_padding(widening & w, ggml_type type, int64_t rows, int64_t n, bool zeros) {
    const size_t row_bytes = ggml_row_size(type, n);
    const int64_t at_once = std::clamp<int64_t>((1 << 20) / n, 1, rows);
    w.values.assign(size_t(at_once * n), 0.0f);
    w.buffer.resize(std::max(COPY_BYTES, row_bytes * size_t(at_once)));
    for (int64_t done = 0; done < rows; done += at_once) {
        const int64_t part = std::min(at_once, rows - done);
        if (!zeros) {
            for (int64_t i = 0; i < part * n; i++) w.values[size_t(i)] = next_value(w.random);
        }
        ggml_quantize_chunk(type, w.values.data(), w.buffer.data(), 0, part, n, nullptr);
        const engine_status status = write_all(w, w.buffer.data(), row_bytes * size_t(part));
        if (failed(status)) return status;
    }
    return {};
}

engine_status write_expert_tensor(widening & w, const gguf_tensor & t, const std::string & kind) {
    const ggml_type type = ggml_type(t.type);
    const uint64_t expert_bytes = t.row_bytes * uint64_t(t.ne[1]);
    engine_status status;
    for (int64_t e = 0; e < t.ne[2] && !failed(status); e++) {
        const uint64_t offset = t.offset + uint64_t(e) * expert_bytes;
        if (kind != "down") {
            status = copy_bytes(w, offset, expert_bytes);
            if (!failed(status)) status = write_padding(w, type, w.width - w.old_width, t.ne[0], kind == "gate");
            continue;
        }
        for (int64_t row = 0; row < t.ne[1] && !failed(status); row++) {
            status = copy_bytes(w, offset + uint64_t(row) * t.row_bytes, t.row_bytes);
            if (!failed(status)) status = write_padding(w, type, 1, w.width - w.old_width, false);
        }
    }
    return status;
}

engine_status check_tensor(const widening & w, const gguf_tensor & t, const std::string & kind) {
    const ggml_type type = ggml_type(t.type);
    if (kind == "gate_up") return status_error(ENGINE_MODEL_FORMAT, "%s: merged gate and up matrices cannot be widened", t.name.c_str());
    if (ggml_quantize_requires_imatrix(type)) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: %s cannot be quantised without an importance matrix", t.name.c_str(), ggml_type_name(type));
    }
    const int64_t block = ggml_blck_size(type);
    if (kind == "down" && w.width % block != 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "width %lld is not a multiple of the %lld values of a %s block (%s)", (long long) w.width,
                            (long long) block, ggml_type_name(type), t.name.c_str());
    }
    return {};
}

// The widths must be the experts' alone: no biases of that width, a shared expert with a width key of its own.
engine_status check_model(widening & w) {
    const gguf_header & h = w.file.header;
    const std::string arch = w.file.info.architecture;
    const int64_t * own = gguf_find_integer(h, arch + ".expert_feed_forward_length");
    if (!own) {
        return status_error(ENGINE_MODEL_FORMAT, "%s.expert_feed_forward_length is missing: the experts' width cannot be changed alone", arch.c_str());
    }
    w.old_width = *own;
    if (w.width <= w.old_width || w.width > (1 << 20)) {
        return status_error(ENGINE_BAD_ARGUMENT, "width: expected above the present %lld, at most %d, found %lld", (long long) w.old_width, 1 << 20,
                            (long long) w.width);
    }
    for (const auto & t : h.tensors) {
        int32_t block;
        std::string kind;
        if (expert_tensor_name(t.name, block, kind)) {
            if ((kind == "down" ? t.ne[0] : t.ne[1]) != w.old_width && kind != "gate_up") {
                return status_error(ENGINE_MODEL_FORMAT, "%s: width differs from the metadata's %lld", t.name.c_str(), (long long) w.old_width);
            }
            const engine_status status = check_tensor(w, t, kind);
            if (failed(status)) return status;
        } else if (t.name.find("_exps.") != std::string::npos) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: experts with biases or scales cannot be widened", t.name.c_str());
        } else if (t.name.find("_shexp.") != std::string::npos && !gguf_find_integer(h, arch + ".expert_shared_feed_forward_length")) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: the shared expert has no width of its own in the metadata", t.name.c_str());
        }
    }
    return {};
}

// Metadata with the new width and alignment, then the tensors with their new shapes. gguf takes the alignment of
// offsets from a file it read, so the metadata goes through memory once.
engine_status make_header(widening & w) {
    gguf_init_params params{true, nullptr};
    gguf_ptr source(gguf_init_from_file(w.file.info.path.c_str(), params));
    gguf_ptr pairs(gguf_init_empty());
    if (!source || !pairs) return status_error(ENGINE_MODEL_FORMAT, "%s: ggml cannot read its header", w.file.info.path.c_str());
    gguf_set_kv(pairs.get(), source.get());
    gguf_set_val_u32(pairs.get(), (w.file.info.architecture + ".expert_feed_forward_length").c_str(), uint32_t(w.width));
    gguf_set_val_u32(pairs.get(), "general.alignment", uint32_t(ALIGNMENT));
    std::vector<char> meta(gguf_get_meta_size(pairs.get()));
    gguf_get_meta_data(pairs.get(), meta.data());
    w.header.reset(gguf_init_from_buffer(meta.data(), meta.size(), params));
    ggml_init_params sizes{ggml_tensor_overhead() * (w.file.header.tensors.size() + 1), nullptr, true};
    w.shapes.reset(ggml_init(sizes));
    if (!w.header || !w.shapes) return status_error(ENGINE_INTERNAL, "the new header could not be made");

    for (const auto & t : w.file.header.tensors) {
        int64_t ne[4] = {t.ne[0], t.ne[1], t.ne[2], t.ne[3]};
        int32_t block;
        std::string kind;
        if (expert_tensor_name(t.name, block, kind)) ne[kind == "down" ? 0 : 1] = w.width;
        ggml_tensor * shape = ggml_new_tensor(w.shapes.get(), ggml_type(t.type), t.dims, ne);
        ggml_set_name(shape, t.name.c_str());
        gguf_add_tensor(w.header.get(), shape);
        w.total += (ggml_nbytes(shape) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    w.total += gguf_get_meta_size(w.header.get());
    return {};
}

engine_status write_file(widening & w) {
    std::vector<char> meta(gguf_get_meta_size(w.header.get()));
    gguf_get_meta_data(w.header.get(), meta.data());
    engine_status status = write_all(w, meta.data(), meta.size());
    const std::vector<char> gap(ALIGNMENT, 0);
    for (const auto & t : w.file.header.tensors) {
        if (failed(status)) return status;
        int32_t block;
        std::string kind;
        status = expert_tensor_name(t.name, block, kind) ? write_expert_tensor(w, t, kind) : copy_bytes(w, t.offset, t.bytes);
        if (!failed(status)) status = write_all(w, gap.data(), (ALIGNMENT - w.written % ALIGNMENT) % ALIGNMENT);
    }
    if (!failed(status) && *w.progress) (*w.progress)(int64_t(w.written), int64_t(w.total));
    return status;
}

}  // namespace

engine_status model_widen(const std::string & source, const std::string & target, int64_t width,
                          const progress_callback & progress, uint64_t & bytes) {
    widening w;
    w.width = width;
    w.target = target;
    w.progress = &progress;
    engine_status status = model_file_read(source, w.file);
    if (!failed(status)) status = check_model(w);
    if (!failed(status)) status = make_header(w);
    if (failed(status)) return status;
    w.in = file_descriptor(open(source.c_str(), O_RDONLY | O_CLOEXEC));
    if (w.in.fd < 0) return status_error(ENGINE_IO, "%s: %s", source.c_str(), strerror(errno));
    w.out = file_descriptor(open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (w.out.fd < 0) {
        return status_error(errno == EEXIST ? ENGINE_BAD_ARGUMENT : ENGINE_IO, "%s: %s", target.c_str(), strerror(errno));
    }
    status = write_file(w);
    if (failed(status)) unlink(target.c_str());
    bytes = w.written;
    return status;
}
