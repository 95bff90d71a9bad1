/**
 * Fetches a file of the coordinator's artifact store over the connection that the agent has. What has arrived stays where it is
 * (`<target>.part`), also over a restart, and the next try goes on behind it; only what has the right SHA-256 becomes `target`.
 */
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { type Artifact, ArtifactServiceClient, type FindArtifactResponse } from '@moefleet/proto';
import { backoffMs, fileSha256 } from '@moefleet/runtime';
import type { LiveChannel } from '../control/identity';

const FIND_TIMEOUT_MS = 15_000;
/** Without a byte for this long the connection counts as lost. */
const SILENCE_MS = 30_000;
/** Jittered, since the devices of a stage all fetch from the coordinator that has just gone. */
const BACKOFF = { baseMs: 1_000, maxMs: 30_000, random: Math.random };
const TRIES_WITHOUT_PROGRESS = 6;

export interface ArtifactSource {
  /** Rejects with a ServiceError: NOT_FOUND, FAILED_PRECONDITION, UNIMPLEMENTED (a coordinator of an earlier release). */
  find(name: string): Promise<Artifact>;
  /** Resolves when `target` is whole. */
  fetch(artifact: Artifact, target: string): Promise<void>;
}

export class CoordinatorArtifacts implements ArtifactSource {
  private readonly stopped = new AbortController();

  /** `channel`: of the live stream; null where there is none. */
  constructor(private readonly coordinator: string, private readonly channel: () => LiveChannel | null) {}

  stop(): void {
    this.stopped.abort(new Error('the agent is stopping'));
  }

  async find(name: string): Promise<Artifact> {
    const { artifact } = await new Promise<FindArtifactResponse>((resolve, reject) => {
      this.client().findArtifact({ name }, new Metadata(), { deadline: Date.now() + FIND_TIMEOUT_MS }, (error, found) => (error ? reject(error) : resolve(found)));
    });
    if (!artifact) throw new Error(`the coordinator has answered without the artifact ${name}`);
    return artifact;
  }

  async fetch(artifact: Artifact, target: string): Promise<void> {
    const part = `${target}.part`;
    await mkdir(dirname(target), { recursive: true });
    let tries = 0;
    for (let had = await sizeOf(part); ;) {
      try {
        await this.readOn(artifact, part, had);
        break;
      } catch (error) {
        this.stopped.signal.throwIfAborted();
        const have = await sizeOf(part);
        tries = have > had ? 0 : tries + 1;
        had = have;
        if (tries >= TRIES_WITHOUT_PROGRESS || isFinal(error)) throw new Error(`fetching ${artifact.name} stopped at ${have} of ${artifact.bytes} bytes: ${(error as Error).message}`, { cause: error });
        await delay(backoffMs(tries, BACKOFF), undefined, { signal: this.stopped.signal }).catch(() => this.stopped.signal.throwIfAborted());
      }
    }
    const found = await fileSha256(part);
    if (found !== artifact.sha256) {
      await rm(part, { force: true });
      throw new Error(`${artifact.name}: SHA-256 ${found} arrived, ${artifact.sha256} was announced`);
    }
    await rename(part, target);
  }

  private async readOn({ sha256, bytes }: Artifact, part: string, offset: number): Promise<void> {
    if (BigInt(offset) >= bytes) return;
    const call = this.client().readArtifact({ sha256, offset: BigInt(offset) });
    const cancel = () => call.cancel();
    this.stopped.signal.addEventListener('abort', cancel);
    let silence = setTimeout(cancel, SILENCE_MS);
    const file = await open(part, 'a', 0o600);
    let at = BigInt(offset);
    try {
      for await (const { data } of call as AsyncIterable<{ data: Buffer }>) {
        clearTimeout(silence);
        at += BigInt(data.length);
        if (at > bytes) throw new Error(`more than the ${bytes} bytes that were announced`);
        await file.writeFile(data);
        silence = setTimeout(cancel, SILENCE_MS);
      }
      await file.sync();
    } finally {
      clearTimeout(silence);
      this.stopped.signal.removeEventListener('abort', cancel);
      call.cancel();
      await file.close();
    }
    if (at < bytes) throw new Error('the coordinator ended before the last byte');
  }

  private client(): ArtifactServiceClient {
    const channelOverride = this.channel();
    if (!channelOverride) throw Object.assign(new Error('the coordinator is away'), { code: status.UNAVAILABLE });
    return new ArtifactServiceClient(this.coordinator, credentials.createInsecure(), { channelOverride });
  }
}

/** Trying again would not help. */
export function isFinal(error: unknown): boolean {
  const { code } = error as Partial<ServiceError>;
  return code === status.NOT_FOUND || code === status.FAILED_PRECONDITION || code === status.UNIMPLEMENTED || code === status.INVALID_ARGUMENT || code === status.PERMISSION_DENIED;
}

async function sizeOf(path: string): Promise<number> {
  return stat(path).then(({ size }) => size, () => 0);
}
