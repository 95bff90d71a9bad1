#include "model-checksums.h"

#include "file-descriptor.h"
#include "file-read.h"

#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <set>

static const char * const DIGEST_KEYS[] = {EXPERT_DIGESTS_KEY, DENSE_DIGESTS_KEY, HEADER_DIGEST_KEY};

std::vector<const gguf_tensor *> checksums_dense_tensors(const model_file & file) {
    std::set<std::string> run;
    for (const auto & layer : file.layers) {
        for (const auto & matrix : layer.matrices) run.insert(matrix.tensor);
    }
    std::vector<const gguf_tensor *> out;
    for (const auto & t : file.header.tensors) {
        if (run.count(t.name) == 0) out.push_back(&t);
    }
    return out;
}

static const gguf_value * find_digests(const gguf_header & header, const char * key) {
    const auto found = header.values.find(key);
    if (found == header.values.end() || found->second.kind != gguf_value::ARRAY) return nullptr;
    return found->second.element_type == GGUF_TYPE_UINT8 ? &found->second : nullptr;
}

static engine_status read_digests(int fd, const model_file & file, const char * key, size_t n, std::vector<sha256_digest> & out) {
    const gguf_value * value = find_digests(file.header, key);
    if (!value || value->count != uint64_t(n) * SHA256_BYTES) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: expected %zu bytes, found %llu; pack the model anew", key, n * SHA256_BYTES,
                            (unsigned long long) (value ? value->count : 0));
    }
    out.resize(n);
    const int error = file_read(fd, out.data(), n * SHA256_BYTES, value->at);
    return error ? file_read_failed(file.info.path, error) : engine_status();
}

engine_status model_checksums_read(const model_file & file, model_checksums & out) {
    if (file.info.pack_version == 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "%s: has no checksums to verify; write a copy that has with: moefleet model pack", file.info.path.c_str());
    }
    if (file.info.pack_version != PACK_VERSION) {
        return status_error(ENGINE_MODEL_FORMAT, PACK_VERSION_KEY ": expected %d, found %lld; pack the model anew", PACK_VERSION,
                            (long long) file.info.pack_version);
    }
    file_descriptor in(open(file.info.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (in.fd < 0) return status_error(ENGINE_IO, "%s: %s", file.info.path.c_str(), strerror(errno));
    std::vector<sha256_digest> header;
    engine_status status = read_digests(in.fd, file, EXPERT_DIGESTS_KEY, file.layers.size() * size_t(file.info.experts), out.experts);
    if (!failed(status)) status = read_digests(in.fd, file, DENSE_DIGESTS_KEY, checksums_dense_tensors(file).size(), out.dense);
    if (!failed(status)) status = read_digests(in.fd, file, HEADER_DIGEST_KEY, 1, header);
    if (!failed(status)) out.header = header[0];
    return status;
}

void model_checksums_mask(const gguf_header & header, uint64_t offset, char * bytes, size_t n) {
    for (const char * key : DIGEST_KEYS) {
        const gguf_value * value = find_digests(header, key);
        if (!value) continue;
        const uint64_t from = std::max(value->at, offset), to = std::min(value->at + value->count, offset + n);
        if (from < to) memset(bytes + (from - offset), 0, size_t(to - from));
    }
}

engine_status model_header_digest(int fd, const model_file & file, sha256_digest & out) {
    std::vector<char> bytes(1 << 20);
    sha256_stream stream;
    sha256_start(stream);
    for (uint64_t at = 0; at < file.header.data_offset;) {
        const size_t part = size_t(std::min<uint64_t>(bytes.size(), file.header.data_offset - at));
        const int error = file_read(fd, bytes.data(), part, at);
        if (error) return file_read_failed(file.info.path, error);
        model_checksums_mask(file.header, at, bytes.data(), part);
        sha256_add(stream, bytes.data(), part);
        at += part;
    }
    sha256_end(stream, out.data());
    return {};
}
