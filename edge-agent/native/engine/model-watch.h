// Notices that the model's file is no longer the one that was loaded: replaced, removed, cut short or written to. By
// what the file system says of the path (inode, size, time of the last change to its content), so a check costs some
// microseconds and does not look at the content; that is `--verify`'s business.
#pragma once

#include "status.h"

#include <string>
#include <sys/stat.h>
#include <vector>

struct watched_file {
    std::string path;
    struct stat as_loaded;
};

struct model_watch { std::vector<watched_file> files; };

// Before anything of the file is read. IO.
engine_status model_watch_add(model_watch & watch, const std::string & path);

// MODEL_CHANGED says what is different.
engine_status model_watch_check(const model_watch & watch);
