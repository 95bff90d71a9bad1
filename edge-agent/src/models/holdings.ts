/** What this device has of models, for devices beside it: which chunk lies where, and which are there yet. */
import type { Manifest } from './manifest';
import type { ModelsFolder } from './models-folder';
import type { PartFile } from './part-file';

export type Found =
  | { t: 'here'; path: string; offset: number; bytes: number }
  | { t: 'manifest'; data: Buffer }
  /** it will come; `held`: bytes of its model that are here */
  | { t: 'not yet'; held: number }
  | { t: 'unknown' };

interface Holding { part: PartFile | null; places: Map<string, { offset: number; bytes: number }>; }

export class Holdings {
  private readonly models = new Map<string, Holding>();

  constructor(private readonly folder: ModelsFolder) {}

  ids(): string[] {
    return [...this.models.keys()];
  }

  isWhole(id: string): boolean {
    return this.models.get(id)?.part === null;
  }

  /** It is being fetched; what `part` has verified may be had. */
  begin(part: PartFile): void {
    this.models.set(part.manifest.id, { part, places: placesOf(part.manifest) });
  }

  /** All of it is in the folder. False where its manifest is not. */
  whole(id: string): boolean {
    const manifest = this.folder.manifest(id);
    if (manifest) this.models.set(id, { part: null, places: placesOf(manifest) });
    return manifest !== null;
  }

  forget(id: string): void {
    this.models.delete(id);
  }

  find(sha256: string): Found {
    if (this.models.has(sha256)) return { t: 'manifest', data: this.folder.manifestBytes(sha256) };
    let waiting: Found = { t: 'unknown' };
    for (const [id, { part, places }] of this.models) {
      const place = places.get(sha256);
      if (!place) continue;
      if (!part) return { t: 'here', path: this.folder.modelPath(id), ...place };
      if (part.has(sha256)) return { t: 'here', path: part.path, ...place };
      waiting = { t: 'not yet', held: part.bytesHeld };
    }
    return waiting;
  }
}

function placesOf({ chunks }: Manifest): Holding['places'] {
  return new Map(chunks.map(({ sha256, bytes, offsets }) => [sha256, { offset: offsets[0]!, bytes }]));
}
