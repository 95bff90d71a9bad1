/** How far a model has come and what it waits for, for whoever is told of it. */
import { ModelFetch } from '@moefleet/proto';

export type ByteSource = 'coordinator' | 'peers' | 'disk';

/** Bytes that have arrived from others, whatever became of them. */
export type Arrived = Record<Exclude<ByteSource, 'disk'>, number>;

/** While bytes came within this time, what another part of the fetch waits for is no news. */
const MOVING_MS = 2_000;

export class FetchProgress {
  bytesDone = 0;
  private readonly from: Record<ByteSource, number> = { coordinator: 0, peers: 0, disk: 0 };
  private readonly waits = new Map<symbol, string>();
  private movedMs = -Infinity;
  /** what is done with all of the file, once it is there */
  private stage = '';

  /** `all`: counts what arrives, of this and of other models */
  constructor(private readonly id: string, private readonly bytesTotal: number, private readonly now: () => number, private readonly all: Arrived = { coordinator: 0, peers: 0 }) {}

  /** Whether they are the right ones is not known yet. */
  arrived(bytes: number, from: keyof Arrived): void {
    this.all[from] += bytes;
    this.movedMs = this.now();
  }

  /** `bytes` of the file are there. */
  done(bytes: number, from: ByteSource): void {
    this.bytesDone += bytes;
    this.from[from] += bytes;
    this.movedMs = this.now();
  }

  /** Until what is returned is called. */
  waitsFor(reason: string): () => void {
    const key = Symbol(reason);
    this.waits.set(key, reason);
    return () => this.waits.delete(key);
  }

  enter(stage: string): void {
    this.stage = stage;
  }

  get waiting(): string {
    if (this.stage !== '') return this.stage;
    if (this.now() - this.movedMs < MOVING_MS) return '';
    return [...this.waits.values()].at(-1) ?? '';
  }

  get sources(): Readonly<Record<ByteSource, number>> {
    return this.from;
  }

  told(): ModelFetch {
    return ModelFetch.fromPartial({
      manifestSha256: this.id, bytesDone: BigInt(this.bytesDone), bytesTotal: BigInt(this.bytesTotal), fromCoordinator: BigInt(this.from.coordinator),
      fromPeers: BigInt(this.from.peers), fromDisk: BigInt(this.from.disk), waiting: this.waiting,
    });
  }
}

