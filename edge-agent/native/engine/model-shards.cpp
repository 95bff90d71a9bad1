#include "model-shards.h"

#include "file-read.h"

#include <cstdio>
#include <fcntl.h>
#include <set>

namespace {

// "name-00002-of-00003.gguf" without "-00002-of-00003.gguf"; false where the path does not end so.
bool shard_stem(const std::string & path, int64_t number, int64_t count, std::string & stem) {
    char ending[64];
    snprintf(ending, sizeof(ending), "-%05lld-of-%05lld.gguf", (long long) number, (long long) count);
    const size_t n = strlen(ending);
    if (path.size() <= n || path.compare(path.size() - n, n, ending) != 0) return false;
    stem = path.substr(0, path.size() - n);
    return true;
}

std::string shard_path(const std::string & stem, int64_t number, int64_t count) {
    char ending[64];
    snprintf(ending, sizeof(ending), "-%05lld-of-%05lld.gguf", (long long) number, (long long) count);
    return stem + ending;
}

engine_status read_one(const std::string & path, int64_t number, int64_t count, gguf_header & out) {
    engine_status status = gguf_header_read(path, out);
    if (status.code == ENGINE_IO) {
        return status_error(ENGINE_IO, "file %lld of the model's %lld cannot be read: %s", (long long) number, (long long) count, status.message);
    }
    if (failed(status)) return status_error(status.code, "%s: %s", path.c_str(), status.message);
    const int64_t * no = gguf_find_integer(out, "split.no");
    const int64_t * of = gguf_find_integer(out, "split.count");
    if (no && of && *no == number - 1 && *of == count) return {};
    return status_error(ENGINE_MODEL_FORMAT, "%s: expected file %lld of %lld, found %lld of %lld; the files do not belong together", path.c_str(),
                        (long long) number, (long long) count, (long long) (no ? *no + 1 : 0), (long long) (of ? *of : 0));
}

engine_status add_tensors(gguf_header & all, const gguf_header & one, int64_t number) {
    if (one.file_bytes >> POSITION_OFFSET_BITS) {
        return status_error(ENGINE_MODEL_FORMAT, "file %lld of the model is larger than %d bits tell", (long long) number, POSITION_OFFSET_BITS);
    }
    all.file_bytes += one.file_bytes;
    for (gguf_tensor t : one.tensors) {
        t.offset |= uint64_t(number - 1) << POSITION_OFFSET_BITS;
        all.tensors.push_back(std::move(t));
    }
    return {};
}

engine_status check_together(const std::string & path, const gguf_header & all) {
    std::set<std::string> names;
    for (const auto & t : all.tensors) {
        if (!names.insert(t.name).second) return status_error(ENGINE_MODEL_FORMAT, "%s: tensor %s is in two of the model's files", path.c_str(), t.name.c_str());
    }
    const int64_t * expected = gguf_find_integer(all, "split.tensors.count");
    if (!expected || *expected == int64_t(names.size())) return {};
    return status_error(ENGINE_MODEL_FORMAT, "%s: expected %lld tensors in all files, found %zu", path.c_str(), (long long) *expected, names.size());
}

}  // namespace

engine_status model_shards_read(const std::string & path, gguf_header & header, std::vector<std::string> & files) {
    files = {path};
    const int64_t * count = gguf_find_integer(header, "split.count");
    if (!count || *count <= 1) return {};
    const int64_t n = *count;
    const int64_t * no = gguf_find_integer(header, "split.no");
    if (n >= MOST_SHARDS || !no || *no < 0 || *no >= n) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: says it is file %lld of %lld", path.c_str(), (long long) (no ? *no + 1 : 0), (long long) n);
    }
    std::string stem;
    if (!shard_stem(path, *no + 1, n, stem)) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: is file %lld of a model's %lld, so its name must end in %s for the others to be found", path.c_str(),
                            (long long) *no + 1, (long long) n, shard_path("", *no + 1, n).c_str());
    }
    if (*no != 0) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: is file %lld of a model's %lld; give the first, %s", path.c_str(), (long long) *no + 1, (long long) n,
                            shard_path(stem, 1, n).c_str());
    }
    if (header.file_bytes >> POSITION_OFFSET_BITS) return status_error(ENGINE_MODEL_FORMAT, "%s: larger than %d bits tell", path.c_str(), POSITION_OFFSET_BITS);
    for (int64_t number = 2; number <= n; number++) {
        files.push_back(shard_path(stem, number, n));
        gguf_header one;
        engine_status status = read_one(files.back(), number, n, one);
        if (!failed(status)) status = add_tensors(header, one, number);
        if (failed(status)) return status;
    }
    return check_together(path, header);
}

gguf_ptr model_shards_metadata(const std::vector<std::string> & files) {
    gguf_ptr all;
    for (const auto & path : files) {
        ggml_context * descriptions = nullptr;
        gguf_ptr one(gguf_init_from_file(path.c_str(), gguf_init_params{true, &descriptions}));
        const ggml_ptr owned(descriptions);
        if (!one) return nullptr;
        if (!all) {
            all = std::move(one);
            continue;
        }
        for (ggml_tensor * t = ggml_get_first_tensor(descriptions); t; t = ggml_get_next_tensor(descriptions, t)) gguf_add_tensor(all.get(), t);
    }
    return all;
}

engine_status model_files_open(model_files & m, const std::vector<std::string> & paths) {
    m.files.clear();
    for (const auto & path : paths) {
        m.files.emplace_back(open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (m.files.back().fd < 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    }
    return {};
}

int model_files_read(const model_files & m, void * to, size_t n, uint64_t position) {
    const size_t file = position_file(position);
    return file < m.files.size() ? file_read(m.files[file].fd, to, n, position_offset(position)) : EINVAL;
}
