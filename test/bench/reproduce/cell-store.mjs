/**
 * Measured cells, one file each, named by the SHA-256 of all that decides the result: what was measured (model, engine,
 * tokens, spec). A run that was interrupted finds what it had; a cell whose file is damaged is measured again.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const hashOf = (value) => createHash('sha256').update(typeof value === 'string' || ArrayBuffer.isView(value) ? value : JSON.stringify(value)).digest('hex');

export class CellStore {
  constructor(folder) {
    this.folder = folder;
    mkdirSync(folder, { recursive: true });
  }

  /** The kept result for `key` (plain JSON), or null. */
  find(key) {
    try {
      return JSON.parse(readFileSync(this.#path(key), 'utf8')).result ?? null;
    } catch {
      return null;
    }
  }

  keep(key, result) {
    const path = this.#path(key);
    writeFileSync(`${path}.${process.pid}`, JSON.stringify({ key, result }));
    renameSync(`${path}.${process.pid}`, path);
  }

  #path(key) {
    return join(this.folder, `${hashOf(key).slice(0, 32)}.json`);
  }
}
