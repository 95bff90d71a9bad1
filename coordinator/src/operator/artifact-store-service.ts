/** ArtifactStoreService: what operators bring for devices to fetch. */
import type { ServerReadableStream } from '@grpc/grpc-js';
import type { Artifact, ArtifactStoreServiceServer, PutArtifactRequest, PutArtifactResponse } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { artifactMessage, type ArtifactStore } from '../artifacts/artifact-store';
import { InvalidRequestError } from '../errors';
import { toGrpcStatus } from '../grpc-status';
import type { Registry } from '../registry/registry';
import { unary } from './call-handler';
import { callerOf } from './caller';

export interface ArtifactDeps { registry: Registry; artifacts: ArtifactStore; log: Logger; }

export function artifactStoreService({ registry, artifacts, log }: ArtifactDeps): ArtifactStoreServiceServer {
  const put = async (call: ServerReadableStream<PutArtifactRequest, PutArtifactResponse>): Promise<PutArtifactResponse> => {
    const messages = (call as AsyncIterable<PutArtifactRequest>)[Symbol.asyncIterator]();
    const first = (await messages.next()).value as PutArtifactRequest | undefined;
    if (first?.body?.$case !== 'head') throw new InvalidRequestError('body', first?.body?.$case ?? 'nothing', 'the head, before any data');
    const { name, bytes, sha256, signature }: Artifact = first.body.value;
    const entry = { who: callerOf(call.metadata).name, what: `artifact ${name}`, why: '', subject: { t: 'all' as const }, before: null, after: { bytes: Number(bytes), sha256 } };
    const record = await registry.audit.around(entry, () => artifacts.put({ name, bytes: Number(bytes), sha256, signature }, dataOf(messages)));
    log.info({ artifact: name, bytes: record.bytes, sha256 }, 'artifact kept');
    return { artifact: artifactMessage(record) };
  };
  return {
    putArtifact: (call, callback) => {
      put(call).then((answer) => callback(null, answer), (error: unknown) => {
        const failure = toGrpcStatus(error);
        if (failure.unexpected) log.error({ err: error, path: call.getPath() }, 'call failed');
        // What is still on its way is read and thrown away; a stream that nobody reads would never end.
        call.resume();
        callback(failure, null);
      });
    },
    listArtifacts: unary(log, async () => ({ artifacts: (await artifacts.list()).map(artifactMessage) })),
  };
}

async function* dataOf(messages: AsyncIterator<PutArtifactRequest>): AsyncGenerator<Buffer> {
  for (let next = await messages.next(); !next.done; next = await messages.next()) {
    const { body } = next.value;
    if (body?.$case !== 'data') throw new InvalidRequestError('body', body?.$case ?? 'nothing', 'data, after the head');
    yield body.value;
  }
}
