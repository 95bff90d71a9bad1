/** ModelStoreService: models that operators bring for devices to fetch. */
import type { ServerReadableStream } from '@grpc/grpc-js';
import type { ModelStoreServiceServer, PutBlobsRequest, PutBlobsResponse } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import type { BlobStore } from '../artifacts/blob-store';
import { modelMessage, type ModelRecord, type ModelStore } from '../artifacts/model-store';
import { InvalidRequestError } from '../errors';
import { toGrpcStatus } from '../grpc-status';
import { modelUser } from '../rollout/model-use';
import type { Registry } from '../registry/registry';
import { unary } from './call-handler';

export interface ModelStoreDeps { registry: Registry; models: ModelStore; blobs: BlobStore; log: Logger }

/** Of one stream, written at once: a push has several streams. */
const MOST_WRITES = 4;

export function modelStoreService({ registry, models, blobs, log }: ModelStoreDeps): ModelStoreServiceServer {
  const take = async (call: ServerReadableStream<PutBlobsRequest, PutBlobsResponse>): Promise<PutBlobsResponse> => {
    const kept = { blobs: 0, bytes: 0n };
    const writes = new Set<Promise<void>>();
    let failure: { error: unknown } | null = null;
    for await (const { sha256, data } of call as AsyncIterable<PutBlobsRequest>) {
      if (sha256.length !== 32) throw new InvalidRequestError('sha256', `${sha256.length} bytes`, 'a SHA-256 of 32 bytes');
      const write = blobs.put(sha256.toString('hex'), data).then(() => {
        kept.blobs += 1;
        kept.bytes += BigInt(data.length);
      }, (error: unknown) => { failure ??= { error }; }).finally(() => writes.delete(write));
      writes.add(write);
      if (writes.size >= MOST_WRITES) await Promise.race(writes);
      if (failure) break;
    }
    await Promise.all(writes);
    if (failure) throw (failure as { error: unknown }).error;
    return kept;
  };
  return {
    findMissingBlobs: unary(log, async ({ sha256 }) => ({ sha256: await models.missing(sha256) })),
    putBlobs: (call, callback) => {
      take(call).then((answer) => callback(null, answer), (error: unknown) => {
        const status = toGrpcStatus(error);
        if (status.unexpected) log.error({ err: error, path: call.getPath() }, 'call failed');
        // What is still on its way is read and thrown away; a stream that nobody reads would never end.
        call.resume();
        callback(status, null);
      });
    },
    putModel: unary(log, async ({ name, manifestSha256 }, caller) => {
      const entry = { who: caller.name, what: `model ${name.slice(0, 100)}`, subject: { t: 'all' as const }, before: null, after: { manifestSha256 } };
      const record = await registry.audit.around(entry, () => models.put(name, manifestSha256));
      log.info({ model: name, bytes: record.bytes, chunks: record.chunks, manifestSha256 }, 'model kept');
      return { model: modelMessage(record) };
    }),
    listModels: unary(log, async () => ({ models: (await models.list()).map(modelMessage) })),
    removeModel: unary(log, async ({ name }, caller) => {
      const record = await models.find(name);
      const entry = { who: caller.name, what: `remove model ${name}`, subject: { t: 'all' as const }, before: { manifestSha256: record.manifestSha256 } };
      const freed = await registry.audit.around(entry, () => models.remove(name, (found: ModelRecord) => modelUser(registry, found)));
      log.info({ model: name, freedBytes: freed }, 'model removed');
      return { freedBytes: BigInt(freed) };
    }),
  };
}
