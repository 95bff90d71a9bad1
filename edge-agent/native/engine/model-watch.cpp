#include "model-watch.h"

#include <cerrno>
#include <cstring>

engine_status model_watch_add(model_watch & watch, const std::string & path) {
    watched_file file;
    file.path = path;
    if (stat(path.c_str(), &file.as_loaded) != 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    watch.files.push_back(file);
    return {};
}

static engine_status changed(const watched_file & file, const char * how) {
    return status_error(ENGINE_MODEL_CHANGED, "%s: %s while in use; load it again", file.path.c_str(), how);
}

static engine_status check(const watched_file & file) {
    const struct stat & before = file.as_loaded;
    struct stat now;
    if (stat(file.path.c_str(), &now) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return changed(file, "removed");
        return status_error(ENGINE_IO, "%s: %s", file.path.c_str(), strerror(errno));
    }
    if (now.st_dev != before.st_dev || now.st_ino != before.st_ino) return changed(file, "replaced by another file");
    if (now.st_size != before.st_size) {
        return status_error(ENGINE_MODEL_CHANGED, "%s: changed while in use (size %lld to %lld); load it again", file.path.c_str(),
                            (long long) before.st_size, (long long) now.st_size);
    }
    if (now.st_mtim.tv_sec != before.st_mtim.tv_sec || now.st_mtim.tv_nsec != before.st_mtim.tv_nsec) return changed(file, "written to");
    return {};
}

engine_status model_watch_check(const model_watch & watch) {
    for (const auto & file : watch.files) {
        const engine_status status = check(file);
        if (failed(status)) return status;
    }
    return {};
}
