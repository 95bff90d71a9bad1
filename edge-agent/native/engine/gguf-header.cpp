#include "gguf-header.h"

#include "file-descriptor.h"

#include "ggml.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

enum value_type : uint32_t {
    U8 = 0, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64, VALUE_TYPES
};
const uint64_t VALUE_BYTES[VALUE_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

// The smallest key-value pair: an empty key, a type, one byte. The smallest tensor: name, dims, one dim, type, offset.
const uint64_t LEAST_PAIR_BYTES = 8 + 4 + 1;
const uint64_t LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8;

struct reader {
    int fd;
    uint64_t file_bytes;
    uint64_t at = 0;           // next byte to hand out
    uint64_t window_start = 0;
    std::vector<char> window;  // bytes of the file from window_start on
    engine_status status;
};

uint64_t bytes_left(const reader & r) { return r.file_bytes - r.at; }

bool fail(reader & r, const char * what) {
    if (!failed(r.status)) {
        r.status = status_error(ENGINE_MODEL_FORMAT, "%s at byte %llu of the header", what, (unsigned long long) r.at);
    }
    return false;
}

bool read_bytes(reader & r, void * out, uint64_t n) {
    if (failed(r.status)) return false;
    if (n > bytes_left(r)) return fail(r, "the file ends in the middle of a value");
    char * to = static_cast<char *>(out);
    while (n > 0) {
        if (r.at < r.window_start || r.at >= r.window_start + r.window.size()) {
            r.window.resize(size_t(std::min<uint64_t>(1 << 18, bytes_left(r))));
            r.window_start = r.at;
            size_t have = 0;
            while (have < r.window.size()) {
                const ssize_t got = pread(r.fd, r.window.data() + have, r.window.size() - have, off_t(r.at + have));
                if (got < 0 && errno == EINTR) continue;
                // A file still being written is shorter than it will be.
                if (got == 0 && have > 0) break;
                if (got <= 0) {
                    r.status = status_error(ENGINE_IO, "reading the header failed at byte %llu: %s",
                                            (unsigned long long) (r.at + have), got < 0 ? strerror(errno) : "end of file");
                    r.window.clear();
                    return false;
                }
                have += size_t(got);
            }
            r.window.resize(have);
        }
        const uint64_t from = r.at - r.window_start;
        const uint64_t part = std::min<uint64_t>(n, r.window.size() - from);
        memcpy(to, r.window.data() + from, part);
        to += part;
        r.at += part;
        n -= part;
    }
    return true;
}

template <typename T> bool read_value(reader & r, T & out) { return read_bytes(r, &out, sizeof(T)); }

bool skip_bytes(reader & r, uint64_t n) {
    if (failed(r.status)) return false;
    if (n > bytes_left(r)) return fail(r, "the file ends in the middle of an array");
    r.at += n;
    return true;
}

bool read_text(reader & r, std::string & out, uint64_t longest) {
    uint64_t n = 0;
    if (!read_value(r, n)) return false;
    if (n > longest || n > bytes_left(r)) return fail(r, "a string is longer than the file or its limit");
    out.resize(size_t(n));
    return read_bytes(r, out.data(), n);
}

bool read_scalar(reader & r, uint32_t type, gguf_value & out) {
    switch (type) {
        case U8:   { uint8_t v = 0;  if (!read_value(r, v)) return false; out.integer = v; return true; }
        case I8:   { int8_t v = 0;   if (!read_value(r, v)) return false; out.integer = v; return true; }
        case BOOL: { uint8_t v = 0;  if (!read_value(r, v)) return false; out.integer = v != 0; return true; }
        case U16:  { uint16_t v = 0; if (!read_value(r, v)) return false; out.integer = v; return true; }
        case I16:  { int16_t v = 0;  if (!read_value(r, v)) return false; out.integer = v; return true; }
        case U32:  { uint32_t v = 0; if (!read_value(r, v)) return false; out.integer = v; return true; }
        case I32:  { int32_t v = 0;  if (!read_value(r, v)) return false; out.integer = v; return true; }
        case I64:  return read_value(r, out.integer);
        case U64: {
            uint64_t v = 0;
            if (!read_value(r, v)) return false;
            out.integer = v > uint64_t(INT64_MAX) ? INT64_MAX : int64_t(v);
            return true;
        }
        case F32: { float v = 0; out.kind = gguf_value::REAL; if (!read_value(r, v)) return false; out.real = v; return true; }
        case F64: out.kind = gguf_value::REAL; return read_value(r, out.real);
        case STRING: out.kind = gguf_value::TEXT; return read_text(r, out.text, 1u << 30);
        default: return fail(r, "a metadata value has an unknown type");
    }
}

bool read_array(reader & r, gguf_value & out) {
    uint32_t type = 0;
    if (!read_value(r, type) || !read_value(r, out.count)) return false;
    out.kind = gguf_value::ARRAY;
    out.element_type = type;
    out.at = r.at;
    if (type >= VALUE_TYPES || type == ARRAY) return fail(r, "an array has an unknown or nested element type");
    const uint64_t least = type == STRING ? 8 : VALUE_BYTES[type];
    if (out.count > bytes_left(r) / least) return fail(r, "an array has more elements than the file has bytes");
    if (type == STRING) {
        for (uint64_t i = 0; i < out.count; i++) {
            uint64_t n = 0;
            if (!read_value(r, n) || !skip_bytes(r, n)) return false;
        }
        return true;
    }
    if (type == F32 || type == F64 || out.count > GGUF_SMALL_ARRAY) return skip_bytes(r, out.count * VALUE_BYTES[type]);
    for (uint64_t i = 0; i < out.count; i++) {
        gguf_value element;
        if (!read_scalar(r, type, element)) return false;
        out.integers.push_back(element.integer);
    }
    return true;
}

bool read_pairs(reader & r, uint64_t n, gguf_header & out) {
    for (uint64_t i = 0; i < n; i++) {
        std::string key;
        uint32_t type = 0;
        gguf_value value;
        if (!read_text(r, key, 1 << 16) || !read_value(r, type)) return false;
        if (key.empty()) return fail(r, "a metadata key is empty");
        if (!(type == ARRAY ? read_array(r, value) : read_scalar(r, type, value))) return false;
        if (!out.values.emplace(key, std::move(value)).second) return fail(r, "a metadata key appears twice");
    }
    return true;
}

// Sizes of one tensor from its shape and type; the caller has read `type` and `ne`.
bool size_tensor(gguf_tensor & t, engine_status & status) {
    const auto bad = [&](const char * what) {
        status = status_error(ENGINE_MODEL_FORMAT, "%s: %s", t.name.c_str(), what);
        return false;
    };
    if (t.type < 0 || t.type >= GGML_TYPE_COUNT || ggml_blck_size(ggml_type(t.type)) <= 0 ||
        ggml_type_size(ggml_type(t.type)) == 0) {
        return bad("unknown tensor type");
    }
    const int64_t block = ggml_blck_size(ggml_type(t.type));
    if (t.ne[0] % block != 0) return bad("the row is not a whole number of quantisation blocks");
    if (__builtin_mul_overflow(uint64_t(t.ne[0] / block), uint64_t(ggml_type_size(ggml_type(t.type))), &t.row_bytes)) {
        return bad("the size overflows");
    }
    t.bytes = t.row_bytes;
    for (int d = 1; d < 4; d++) {
        if (__builtin_mul_overflow(t.bytes, uint64_t(t.ne[d]), &t.bytes) || t.bytes > uint64_t(INT64_MAX)) {
            return bad("the size overflows");
        }
    }
    return true;
}

bool read_tensors(reader & r, uint64_t n, gguf_header & out) {
    for (uint64_t i = 0; i < n; i++) {
        gguf_tensor t;
        uint32_t dims = 0, type = 0;
        if (!read_text(r, t.name, GGML_MAX_NAME - 1) || !read_value(r, dims)) return false;
        if (t.name.empty()) return fail(r, "a tensor has no name");
        if (dims < 1 || dims > 4) return fail(r, "a tensor has other than 1 to 4 dimensions");
        t.dims = int32_t(dims);
        for (uint32_t d = 0; d < dims; d++) {
            if (!read_value(r, t.ne[d])) return false;
            if (t.ne[d] < 1) return fail(r, "a tensor has a dimension below 1");
        }
        if (!read_value(r, type) || !read_value(r, t.offset)) return false;
        t.type = int32_t(std::min<uint32_t>(type, GGML_TYPE_COUNT));
        if (!size_tensor(t, r.status)) return false;
        out.tensors.push_back(std::move(t));
    }
    return true;
}

// Turns offsets into file offsets and checks that tensors lie inside the file, apart from each other.
engine_status place_tensors(gguf_header & h, uint64_t header_end) {
    h.data_offset = (header_end + h.alignment - 1) / h.alignment * h.alignment;
    std::vector<const gguf_tensor *> order;
    std::vector<std::string> names;
    for (auto & t : h.tensors) {
        if (t.offset % h.alignment != 0) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: offset %llu is not a multiple of the alignment %llu", t.name.c_str(),
                                (unsigned long long) t.offset, (unsigned long long) h.alignment);
        }
        if (t.offset > h.file_bytes || h.data_offset > h.file_bytes - t.offset ||
            t.bytes > h.file_bytes - t.offset - h.data_offset) {
            return status_error(ENGINE_MODEL_FORMAT,
                                "%s: %llu bytes at data offset %llu reach past the end of the file (%llu bytes); is it truncated?",
                                t.name.c_str(), (unsigned long long) t.bytes, (unsigned long long) t.offset,
                                (unsigned long long) h.file_bytes);
        }
        t.offset += h.data_offset;
        order.push_back(&t);
        names.push_back(t.name);
    }
    std::sort(order.begin(), order.end(), [](auto a, auto b) { return a->offset < b->offset; });
    for (size_t i = 1; i < order.size(); i++) {
        if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
            return status_error(ENGINE_MODEL_FORMAT, "%s overlaps %s", order[i]->name.c_str(), order[i - 1]->name.c_str());
        }
    }
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) return status_error(ENGINE_MODEL_FORMAT, "tensor %s appears twice", twice->c_str());
    return {};
}

engine_status read_alignment(gguf_header & h) {
    const auto found = h.values.find("general.alignment");
    if (found == h.values.end()) return {};
    const int64_t a = found->second.integer;
    if (found->second.kind != gguf_value::INTEGER || a < 8 || a > (1 << 30) || (a & (a - 1)) != 0) {
        return status_error(ENGINE_MODEL_FORMAT, "general.alignment: expected a power of two from 8, found %lld", (long long) a);
    }
    h.alignment = uint64_t(a);
    return {};
}

}  // namespace

engine_status gguf_header_read(const std::string & path, gguf_header & out) {
    // Not blocking: opening a pipe would wait for its writer. Regular files do not care.
    file_descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.fd < 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    struct stat info;
    if (fstat(file.fd, &info) != 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    if (!S_ISREG(info.st_mode)) return status_error(ENGINE_IO, "%s: not a regular file", path.c_str());
    return gguf_header_read_from(file.fd, uint64_t(info.st_size), path, out);
}

engine_status gguf_header_read_from(int fd, uint64_t file_bytes, const std::string & path, gguf_header & out) {
    reader r{fd, file_bytes};
    out = gguf_header();
    out.file_bytes = r.file_bytes;
    char magic[4] = {0, 0, 0, 0};
    uint32_t version = 0;
    uint64_t tensors = 0, pairs = 0;
    if (r.file_bytes < 24 || !read_bytes(r, magic, 4) || memcmp(magic, "GGUF", 4) != 0) {
        return status_error(failed(r.status) ? r.status.code : ENGINE_MODEL_FORMAT, "%s: not a GGUF file", path.c_str());
    }
    read_value(r, version);
    read_value(r, tensors);
    read_value(r, pairs);
    if (failed(r.status)) return r.status;
    if (version < 2 || version > 3) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: GGUF version %u; versions 2 and 3 are read", path.c_str(), version);
    }
    if (pairs > bytes_left(r) / LEAST_PAIR_BYTES || tensors > bytes_left(r) / LEAST_TENSOR_BYTES) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: %llu metadata values and %llu tensors do not fit a file of %llu bytes",
                            path.c_str(), (unsigned long long) pairs, (unsigned long long) tensors,
                            (unsigned long long) r.file_bytes);
    }
    if (!read_pairs(r, pairs, out) || !read_tensors(r, tensors, out)) return r.status;
    engine_status status = read_alignment(out);
    if (!failed(status)) status = place_tensors(out, r.at);
    return status;
}

const int64_t * gguf_find_integer(const gguf_header & h, const std::string & key) {
    const auto found = h.values.find(key);
    return found != h.values.end() && found->second.kind == gguf_value::INTEGER ? &found->second.integer : nullptr;
}

const std::string * gguf_find_text(const gguf_header & h, const std::string & key) {
    const auto found = h.values.find(key);
    return found != h.values.end() && found->second.kind == gguf_value::TEXT ? &found->second.text : nullptr;
}
