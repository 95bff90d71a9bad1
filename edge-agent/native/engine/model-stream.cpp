#include "model-stream.h"

#include "file-read.h"

#include <algorithm>
#include <sys/mman.h>

namespace {

// What the C library copies at once, and how far the pages given back lag behind.
const size_t BUFFER_BYTES = 1 << 20;

// The first expert range that ends after `at`.
const passed_range * range_from(const model_stream & s, uint64_t at) {
    const auto found = std::upper_bound(s.experts.begin(), s.experts.end(), at,
                                        [](uint64_t position, const passed_range & r) { return position < r.end; });
    return found == s.experts.end() ? nullptr : &*found;
}

// Everything of the range before `at` has been copied to its place by now.
void give_back(const model_stream & s, const passed_range & range, uint64_t at) {
    if (!range.place || !range.place->base) return;
    const uint64_t done = (at - range.begin) / s.page * s.page;
    const uint64_t from = done > 2 * BUFFER_BYTES ? (done - 2 * BUFFER_BYTES) / s.page * s.page : 0;
    if (done > from) madvise(range.place->base + from, done - from, MADV_DONTNEED);
}

// Puts up to n bytes from `s.at` on, all from one place; how many, 0 on an error.
uint64_t serve(model_stream & s, char * to, uint64_t n) {
    if (s.at < s.header.size()) {
        n = std::min<uint64_t>(n, s.header.size() - s.at);
        memcpy(to, s.header.data() + s.at, n);
        return n;
    }
    const auto piece = std::upper_bound(s.pieces.begin(), s.pieces.end(), s.at,
                                        [](uint64_t at, const stream_piece & p) { return at < p.end; });
    if (piece == s.pieces.end() || s.at < piece->begin) {
        if (piece != s.pieces.end()) n = std::min(n, piece->begin - s.at);
        memset(to, 0, n);
        return n;
    }
    n = std::min(n, piece->end - s.at);
    const uint64_t position = piece->position + (s.at - piece->begin);
    const int error = model_files_read(s.files, to, size_t(n), position);
    if (!error) return n;
    s.status = file_read_failed(s.model->info.files[position_file(position)], error);
    return 0;
}

ssize_t stream_read(void * cookie, char * to, size_t n) {
    model_stream & s = *static_cast<model_stream *>(cookie);
    n = size_t(std::min<uint64_t>(n, s.bytes - std::min(s.at, s.bytes)));
    size_t done = 0;
    while (done < n) {
        const passed_range * range = range_from(s, s.at);
        if (range && s.at >= range->begin) {
            give_back(s, *range, s.at);
            const uint64_t part = std::min<uint64_t>(n - done, range->end - s.at);
            s.at += part;
            done += size_t(part);
            continue;
        }
        const uint64_t most = std::min<uint64_t>(n - done, range ? range->begin - s.at : UINT64_MAX);
        const uint64_t part = serve(s, to + done, most);
        if (part == 0) return -1;
        s.at += part;
        done += size_t(part);
    }
    return ssize_t(done);
}

int stream_seek(void * cookie, off64_t * offset, int whence) {
    model_stream & s = *static_cast<model_stream *>(cookie);
    const int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? int64_t(s.at) : int64_t(s.bytes);
    if (base + *offset < 0) return -1;
    s.at = uint64_t(base + *offset);
    *offset = off64_t(s.at);
    return 0;
}

const expert_place * place_of(const expert_memory & memory, const std::string & tensor) {
    for (const auto & layer : memory.layers) {
        for (int i = 0; i < layer.n_places; i++) {
            if (tensor == layer.places[i].tensor) return &layer.places[i];
        }
    }
    return nullptr;
}

}  // namespace

// One file is served as it is; the places of tensors in a stream of several follow from the header that describes all.
static engine_status lay_out(model_stream & stream, std::vector<uint64_t> & places) {
    const model_file & file = *stream.model;
    if (file.info.files.size() == 1) {
        stream.bytes = file.info.file_bytes;
        stream.pieces.push_back({0, stream.bytes, 0});
        for (const auto & t : file.header.tensors) places.push_back(t.offset);
        return {};
    }
    const gguf_ptr all = model_shards_metadata(file.info.files);
    if (!all || gguf_get_n_tensors(all.get()) != int64_t(file.header.tensors.size())) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: ggml cannot read the headers of all files", file.info.path.c_str());
    }
    for (const char * key : {"split.no", "split.count", "split.tensors.count"}) gguf_remove_key(all.get(), key);
    stream.header.resize(gguf_get_meta_size(all.get()));
    gguf_get_meta_data(all.get(), stream.header.data());
    stream.bytes = stream.header.size();
    for (size_t i = 0; i < file.header.tensors.size(); i++) {
        const gguf_tensor & t = file.header.tensors[i];
        places.push_back(stream.header.size() + gguf_get_tensor_offset(all.get(), int64_t(i)));
        stream.pieces.push_back({places[i], places[i] + t.bytes, t.offset});
        stream.bytes = (places[i] + t.bytes + file.header.alignment - 1) / file.header.alignment * file.header.alignment;
    }
    return {};
}

FILE * model_stream_open(model_stream & stream, const model_file & file, const expert_memory & memory) {
    stream.model = &file;
    stream.page = memory.page;
    std::vector<uint64_t> places;
    stream.status = model_files_open(stream.files, file.info.files);
    if (!failed(stream.status)) stream.status = lay_out(stream, places);
    if (failed(stream.status)) return nullptr;
    for (size_t i = 0; i < places.size(); i++) {
        const gguf_tensor & t = file.header.tensors[i];
        int32_t block;
        std::string kind;
        if (expert_tensor_name(t.name, block, kind)) stream.experts.push_back({places[i], places[i] + t.bytes, place_of(memory, t.name)});
    }
    std::sort(stream.experts.begin(), stream.experts.end(), [](const auto & a, const auto & b) { return a.begin < b.begin; });
    cookie_io_functions_t functions = {};
    functions.read = stream_read;
    functions.seek = stream_seek;
    FILE * handle = fopencookie(&stream, "rb", functions);
    if (!handle) {
        stream.status = status_error(ENGINE_IO, "%s: %s", file.info.path.c_str(), strerror(errno));
        return nullptr;
    }
    stream.buffer.resize(BUFFER_BYTES);
    setvbuf(handle, stream.buffer.data(), _IOFBF, stream.buffer.size());
    return handle;
}
