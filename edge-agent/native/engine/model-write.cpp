#include "model-write.h"

#include "file-read.h"

#include "ggml.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace {

const size_t COPY_BYTES = 4 << 20;
const size_t PENDING_BYTES = 1 << 20;
// Progress would otherwise run ahead of the disk by all of the page cache and then stand still.
const uint64_t SYNC_BYTES = 128 << 20;
const uint64_t REPORT_BYTES = 16 << 20;


engine_status io_error(const std::string & path) { return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno)); }

std::string folder_of(const std::string & path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

const gguf_tensor * find_tensor(const model_file & file, const std::string & name) {
    for (const auto & t : file.header.tensors) {
        if (t.name == name) return &t;
    }
    return nullptr;
}

void plan(model_writing & w, const gguf_tensor & t, int layer) {
    planned_tensor p;
    p.source = &t;
    p.type = ggml_type(t.type);
    std::copy(t.ne, t.ne + 4, p.ne);
    p.layer = layer;
    int32_t block;
    if (layer >= 0) expert_tensor_name(t.name, block, p.kind);
    w.tensors.push_back(p);
}

// The source's metadata; keys of ours and what spoke of shards are left out, since they would no longer hold.
engine_status take_metadata(model_writing & w) {
    gguf_init_params params{true, nullptr};
    gguf_ptr source(gguf_init_from_file(w.file.info.path.c_str(), params));
    w.metadata.reset(gguf_init_empty());
    if (!source || !w.metadata) return status_error(ENGINE_MODEL_FORMAT, "%s: ggml cannot read its header", w.file.info.path.c_str());
    gguf_set_kv(w.metadata.get(), source.get());
    for (const char * key : {PACK_VERSION_KEY, EXPERT_DIGESTS_KEY, DENSE_DIGESTS_KEY, HEADER_DIGEST_KEY, "split.no", "split.count", "split.tensors.count"}) {
        gguf_remove_key(w.metadata.get(), key);
    }
    return {};
}

void set_zeros(gguf_context * g, const char * key, size_t digests) {
    const std::vector<uint8_t> zeros(digests * SHA256_BYTES, 0);
    gguf_set_arr_data(g, key, GGUF_TYPE_UINT8, zeros.data(), zeros.size());
}

// The new header with digests of zeros, and the sizes of everything.
engine_status make_header(model_writing & w, std::vector<char> & bytes) {
    gguf_context * metadata = w.metadata.get();
    gguf_set_val_u32(metadata, "general.alignment", WRITE_ALIGNMENT);
    gguf_set_val_u32(metadata, PACK_VERSION_KEY, PACK_VERSION);
    set_zeros(metadata, EXPERT_DIGESTS_KEY, w.checksums.experts.size());
    set_zeros(metadata, DENSE_DIGESTS_KEY, w.checksums.dense.size());
    set_zeros(metadata, HEADER_DIGEST_KEY, 1);
    // gguf takes the alignment of offsets from a file it read, so the metadata goes through memory once.
    std::vector<char> pairs(gguf_get_meta_size(metadata));
    gguf_get_meta_data(metadata, pairs.data());
    gguf_ptr header(gguf_init_from_buffer(pairs.data(), pairs.size(), gguf_init_params{true, nullptr}));
    ggml_ptr shapes(ggml_init(ggml_init_params{ggml_tensor_overhead() * (w.tensors.size() + 1), nullptr, true}));
    if (!header || !shapes) return status_error(ENGINE_INTERNAL, "%s: the new header could not be made", w.target.c_str());
    w.total = 0;
    for (auto & t : w.tensors) {
        ggml_tensor * shape = ggml_new_tensor(shapes.get(), t.type, t.source->dims, t.ne);
        ggml_set_name(shape, t.source->name.c_str());
        gguf_add_tensor(header.get(), shape);
        t.bytes = ggml_nbytes(shape);
        w.total += GGML_PAD(t.bytes, WRITE_ALIGNMENT);
    }
    bytes.resize(gguf_get_meta_size(header.get()));
    gguf_get_meta_data(header.get(), bytes.data());
    w.total += bytes.size();
    return {};
}

engine_status check_space(const model_writing & w, uint64_t held) {
    struct statvfs disk;
    const std::string folder = folder_of(w.target);
    if (statvfs(folder.c_str(), &disk) != 0) return io_error(folder);
    const uint64_t free_bytes = uint64_t(disk.f_bavail) * disk.f_frsize;
    const uint64_t missing = w.total - std::min(w.total, held);
    if (missing <= free_bytes) return {};
    return status_error(ENGINE_IO, "%s: needs %llu bytes more, and %s has %llu free; make room or write elsewhere", w.target.c_str(),
                        (unsigned long long) missing, folder.c_str(), (unsigned long long) free_bytes);
}

// Takes up what an earlier attempt left, if it began with the same header.
engine_status open_part(model_writing & w, const std::vector<char> & header) {
    w.out = file_descriptor(open(w.part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (w.out.fd < 0) return io_error(w.part);
    if (flock(w.out.fd, LOCK_EX | LOCK_NB) != 0) {
        return status_error(ENGINE_BUSY, "%s: another process is writing it; wait for it, or end it", w.part.c_str());
    }
    struct stat info;
    if (fstat(w.out.fd, &info) != 0) return io_error(w.part);
    const uint64_t held = uint64_t(info.st_size);
    const engine_status space = check_space(w, uint64_t(info.st_blocks) * 512);
    if (failed(space)) {
        if (held == 0) unlink(w.part.c_str());
        return space;
    }
    // Digests are written last, so an attempt may have ended with some of them in place.
    gguf_header read_back;
    std::vector<char> before(header.size());
    const bool same_header = held >= header.size() && file_read(w.out.fd, before.data(), before.size(), 0) == 0 &&
                             !failed(gguf_header_read_from(w.out.fd, w.total, w.part, read_back));
    if (same_header) model_checksums_mask(read_back, 0, before.data(), before.size());
    w.kept_end = same_header && before == header ? std::min(held, w.total) : 0;
    if (held > w.kept_end && ftruncate(w.out.fd, off_t(w.kept_end)) != 0) return io_error(w.part);
    return {};
}

// Compares with what the earlier attempt holds at this place; from the first difference on nothing of it counts.
engine_status keep(model_writing & w, const char * data, size_t n, size_t & same) {
    same = size_t(std::min<uint64_t>(n, w.kept_end - w.written));
    w.compare.resize(std::max(w.compare.size(), same));
    const int error = file_read(w.out.fd, w.compare.data(), same, w.written);
    if (error) return file_read_failed(w.part, error);
    same = size_t(std::mismatch(data, data + same, w.compare.data()).first - data);
    w.kept += same;
    if (same < n && w.written + same < w.kept_end) {
        w.kept_end = w.written + same;
        if (ftruncate(w.out.fd, off_t(w.kept_end)) != 0) return io_error(w.part);
    }
    return {};
}

engine_status write_at(const model_writing & w, const char * data, size_t n, uint64_t offset) {
    while (n > 0) {
        const ssize_t put = pwrite(w.out.fd, data, n, off_t(offset));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return io_error(w.part);
        data += put;
        n -= size_t(put);
        offset += uint64_t(put);
    }
    return {};
}

engine_status write_out(model_writing & w, const char * data, size_t n) {
    size_t same = 0;
    engine_status status;
    if (w.written < w.kept_end) status = keep(w, data, n, same);
    if (!failed(status)) status = write_at(w, data + same, n - same, w.written + same);
    if (failed(status)) return status;
    w.written += n;
    if (w.written - w.synced >= SYNC_BYTES) {
        if (fdatasync(w.out.fd) != 0) return io_error(w.part);
        posix_fadvise(w.out.fd, off_t(w.synced), off_t(w.written - w.synced), POSIX_FADV_DONTNEED);
        w.synced = w.written;
    }
    if (*w.progress && w.written - w.reported >= REPORT_BYTES) {
        w.reported = w.written;
        if (!(*w.progress)(int64_t(w.written), int64_t(w.total))) {
            return status_error(ENGINE_CANCELLED, "%s: cancelled; run it again to go on from here", w.target.c_str());
        }
    }
    return {};
}

// Rows of a tensor come in small pieces; the disk gets large ones.
engine_status append(model_writing & w, const char * data, size_t n) {
    if (w.pending.size() + n <= PENDING_BYTES) {
        w.pending.insert(w.pending.end(), data, data + n);
        return {};
    }
    engine_status status = write_out(w, w.pending.data(), w.pending.size());
    w.pending.clear();
    if (failed(status)) return status;
    if (n <= PENDING_BYTES) w.pending.assign(data, data + n);
    else status = write_out(w, data, n);
    return status;
}

engine_status end_on_boundary(model_writing & w) {
    const uint64_t at = w.written + w.pending.size();
    w.pending.resize(w.pending.size() + size_t(GGML_PAD(at, WRITE_ALIGNMENT) - at), 0);
    const engine_status status = write_out(w, w.pending.data(), w.pending.size());
    w.pending.clear();
    return status;
}

void begin_tensor(model_writing & w, const planned_tensor & t) {
    w.tensor_written = 0;
    const bool goes_on = w.current && t.layer >= 0 && w.current->layer == t.layer;
    w.current = &t;
    if (goes_on) return;
    w.streams.resize(t.layer < 0 ? 1 : size_t(w.file.info.experts));
    for (auto & s : w.streams) sha256_start(s);
}

bool as_expected(const std::vector<sha256_digest> & found, const std::vector<sha256_digest> & expected, size_t i) {
    return expected.empty() || found[i] == expected[i];
}

engine_status end_tensor(model_writing & w, size_t & dense_done) {
    const char * path = w.file.info.path.c_str();
    if (w.current->layer < 0) {
        const size_t i = dense_done++;
        sha256_end(w.streams[0], w.checksums.dense[i].data());
        if (as_expected(w.checksums.dense, w.expected.dense, i)) return {};
        return status_error(ENGINE_MODEL_FORMAT, "%s: checksum mismatch in %s; fetch the file again", w.current->source->name.c_str(), path);
    }
    if (!w.current->last_of_layer) return {};
    const size_t first = size_t(w.current->layer) * w.streams.size();
    for (size_t e = 0; e < w.streams.size(); e++) {
        sha256_end(w.streams[e], w.checksums.experts[first + e].data());
        if (as_expected(w.checksums.experts, w.expected.experts, first + e)) continue;
        return status_error(ENGINE_MODEL_FORMAT, "blk.%d expert %zu: checksum mismatch in %s; fetch the file again",
                            w.file.layers[size_t(w.current->layer)].block, e, path);
    }
    return {};
}

engine_status write_tensors(model_writing & w, const tensor_producer & produce) {
    size_t dense_done = 0;
    for (const auto & t : w.tensors) {
        begin_tensor(w, t);
        engine_status status = produce(w, t);
        if (failed(status)) return status;
        if (w.tensor_written != t.bytes) {
            return status_error(ENGINE_INTERNAL, "%s: %llu bytes were made of %llu", t.source->name.c_str(), (unsigned long long) w.tensor_written,
                                (unsigned long long) t.bytes);
        }
        status = end_tensor(w, dense_done);
        if (!failed(status)) status = end_on_boundary(w);
        if (failed(status)) return status;
    }
    return {};
}

engine_status write_digests(const model_writing & w, const std::vector<sha256_digest> & digests, const char * key) {
    return write_at(w, reinterpret_cast<const char *>(digests.data()), digests.size() * SHA256_BYTES, w.made.values.at(key).at);
}

// Digests in place, everything on the disk, then the name.
engine_status finish(model_writing & w) {
    engine_status status = write_digests(w, w.checksums.experts, EXPERT_DIGESTS_KEY);
    if (!failed(status)) status = write_digests(w, w.checksums.dense, DENSE_DIGESTS_KEY);
    if (!failed(status)) status = write_digests(w, {w.checksums.header}, HEADER_DIGEST_KEY);
    if (failed(status)) return status;
    if (fsync(w.out.fd) != 0) return io_error(w.part);
    if (rename(w.part.c_str(), w.target.c_str()) != 0) return io_error(w.target);
    const file_descriptor folder(open(folder_of(w.target).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.fd < 0 || fsync(folder.fd) != 0) return io_error(folder_of(w.target));
    if (*w.progress) (*w.progress)(int64_t(w.total), int64_t(w.total));
    return {};
}

}  // namespace

engine_status model_write_begin(model_writing & w, const std::string & source, const std::string & target, bool replace,
                                const progress_callback & progress) {
    w.target = target;
    w.part = target + ".part";
    w.replace = replace;
    w.progress = &progress;
    engine_status status = model_file_read(source, w.file);
    if (failed(status)) return status;
    struct stat there;
    if (lstat(target.c_str(), &there) == 0) {
        if (!replace) return status_error(ENGINE_BAD_ARGUMENT, "%s: exists already; choose another name, or have it replaced", target.c_str());
        if (!S_ISREG(there.st_mode)) return status_error(ENGINE_BAD_ARGUMENT, "%s: is no regular file and will not be replaced", target.c_str());
    }
    status = model_files_open(w.in, w.file.info.files);
    if (failed(status)) return status;
    for (const auto & in : w.in.files) posix_fadvise(in.fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    for (const gguf_tensor * t : checksums_dense_tensors(w.file)) plan(w, *t, -1);
    w.checksums.dense.resize(w.tensors.size());
    for (size_t l = 0; l < w.file.layers.size(); l++) {
        for (const auto & matrix : w.file.layers[l].matrices) plan(w, *find_tensor(w.file, matrix.tensor), int(l));
        w.tensors.back().last_of_layer = true;
    }
    w.checksums.experts.resize(w.file.layers.size() * size_t(w.file.info.experts));
    return take_metadata(w);
}

engine_status model_write_run(model_writing & w, const tensor_producer & produce) {
    std::vector<char> header;
    engine_status status = make_header(w, header);
    if (!failed(status)) status = open_part(w, header);
    if (!failed(status)) {
        // The earlier attempt's digests are no part of the comparison.
        status = write_at(w, header.data(), header.size(), 0);
        w.written = w.reported = w.synced = header.size();
        w.kept = w.kept_end ? header.size() : 0;
    }
    if (!failed(status)) status = gguf_header_read_from(w.out.fd, w.total, w.part, w.made);
    if (failed(status)) return status;
    sha256_stream stream;
    sha256_start(stream);
    sha256_add(stream, header.data(), header.size());
    sha256_end(stream, w.checksums.header.data());
    status = write_tensors(w, produce);
    return failed(status) ? status : finish(w);
}

engine_status model_write_put(model_writing & w, const void * data, size_t n) {
    const char * bytes = static_cast<const char *>(data);
    const uint64_t unit = std::max<uint64_t>(1, w.current->bytes / w.streams.size());
    for (size_t done = 0; done < n;) {
        const size_t e = size_t(w.tensor_written / unit);
        if (e >= w.streams.size()) return status_error(ENGINE_INTERNAL, "%s: more bytes than it has", w.current->source->name.c_str());
        const size_t part = size_t(std::min<uint64_t>(n - done, (e + 1) * unit - w.tensor_written));
        sha256_add(w.streams[e], bytes + done, part);
        w.tensor_written += part;
        done += part;
    }
    return append(w, bytes, n);
}

engine_status model_write_read(const model_writing & w, uint64_t source_offset, uint64_t n, std::vector<char> & out) {
    out.resize(size_t(n));
    const int error = model_files_read(w.in, out.data(), out.size(), source_offset);
    return error ? file_read_failed(w.file.info.files[position_file(source_offset)], error) : engine_status();
}

engine_status model_write_copy(model_writing & w, uint64_t source_offset, uint64_t n) {
    w.buffer.resize(COPY_BYTES);
    while (n > 0) {
        const size_t part = size_t(std::min<uint64_t>(n, COPY_BYTES));
        const int error = model_files_read(w.in, w.buffer.data(), part, source_offset);
        if (error) return file_read_failed(w.file.info.files[position_file(source_offset)], error);
        const engine_status status = model_write_put(w, w.buffer.data(), part);
        if (failed(status)) return status;
        source_offset += part;
        n -= part;
    }
    return {};
}

engine_status model_write_same(model_writing & w, const planned_tensor & t) { return model_write_copy(w, t.source->offset, t.source->bytes); }
