/**
 * Recorded windows on disk, oldest first, until the coordinator has stored them. A window is one file, a serialised
 * RouterWindow, written under a temporary name and renamed. Past the bound the oldest go first, and are counted.
 */
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { RouterWindow } from '@moefleet/proto';
import type { Logger, Service } from '@moefleet/runtime';

const FILE_NAME = /^(\d{12})\.window$/;

interface Entry { file: string; bytes: number }

export class WindowSpool implements Service {
  readonly name = 'window spool';
  private entries: Entry[] = [];
  private next = 1;
  private droppedCount = 0;
  private working: Promise<unknown> = Promise.resolve();

  constructor(private readonly folder: string, private readonly maxBytes: number, private readonly log: Logger) {}

  get dropped(): number { return this.droppedCount; }
  get windows(): number { return this.entries.length; }
  get bytes(): number { return this.entries.reduce((sum, { bytes }) => sum + bytes, 0); }

  async start(): Promise<void> {
    await mkdir(this.folder, { recursive: true, mode: 0o700 });
    const names = (await readdir(this.folder)).sort();
    for (const name of names.filter((each) => !FILE_NAME.test(each))) await rm(join(this.folder, name), { force: true, recursive: true });
    const files = names.filter((name) => FILE_NAME.test(name));
    this.entries = await Promise.all(files.map(async (file) => ({ file, bytes: (await stat(join(this.folder, file))).size })));
    this.next = Number(FILE_NAME.exec(files.at(-1) ?? '')?.[1] ?? 0) + 1;
    await this.trim();
  }

  async stop(): Promise<void> {
    await this.working;
  }

  /** Rejects where the disk refuses. */
  add(window: RouterWindow): Promise<void> {
    return this.inTurn(async () => {
      const body = Buffer.from(RouterWindow.encode(window).finish());
      const file = `${String(this.next).padStart(12, '0')}.window`;
      this.next += 1;
      const temporary = join(this.folder, `${file}.new`);
      try {
        await writeFile(temporary, body, { mode: 0o600 });
        await rename(temporary, join(this.folder, file));
      } catch (error) {
        await rm(temporary, { force: true }).catch(() => {});
        throw error;
      }
      this.entries.push({ file, bytes: body.length });
      await this.trim();
    });
  }

  /** The oldest; null where there is none. One that cannot be read is dropped. */
  oldest(): Promise<{ file: string; body: Buffer; window: RouterWindow } | null> {
    return this.inTurn(async () => {
      for (let entry = this.entries[0]; entry; entry = this.entries[0]) {
        try {
          const body = await readFile(join(this.folder, entry.file));
          return { file: entry.file, body, window: RouterWindow.decode(body) };
        } catch (error) {
          this.log.warn({ file: entry.file, reason: (error as Error).message }, 'a spooled router window cannot be read and is dropped');
          this.droppedCount += 1;
          await this.forget(entry);
        }
      }
      return null;
    });
  }

  /** It has been stored, or never will be. */
  remove(file: string): Promise<void> {
    return this.inTurn(async () => {
      const entry = this.entries.find((each) => each.file === file);
      if (entry) await this.forget(entry);
    });
  }

  /** Drops all, uncounted: nobody wants them any more. */
  clear(): Promise<void> {
    return this.inTurn(async () => {
      for (const entry of [...this.entries]) await this.forget(entry);
    });
  }

  private async trim(): Promise<void> {
    while (this.bytes > this.maxBytes && this.entries.length > 0) {
      this.droppedCount += 1;
      await this.forget(this.entries[0]!);
    }
  }

  private async forget(entry: Entry): Promise<void> {
    this.entries = this.entries.filter((each) => each !== entry);
    await rm(join(this.folder, entry.file), { force: true });
  }

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.working.then(work);
    this.working = turn.catch(() => {});
    return turn;
  }
}
