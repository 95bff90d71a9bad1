/** Makes the kernel forget what it has read of the model, so that every arm starts from the disk. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { runTool } from './bench-tool';

const DROP_CACHES = '/proc/sys/vm/drop_caches';

/** `all`: the whole page cache (root); `file`: the model's pages, save those that another process maps. */
export type CacheDrop = 'all' | 'file';

export async function dropPageCache(path: string, signal: AbortSignal): Promise<CacheDrop> {
  // Also writes back what is dirty, which could not be dropped.
  await runTool(['drop', path], null, signal);
  try {
    const fd = openSync(DROP_CACHES, 'w');
    try {
      writeSync(fd, '1');
    } finally {
      closeSync(fd);
    }
    return 'all';
  } catch {
    return 'file';
  }
}
