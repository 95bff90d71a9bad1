/** ArtifactService: what devices fetch, on the listener that they connect to. */
import { once } from 'node:events';
import type { ServerUnaryCall, ServerWritableStream } from '@grpc/grpc-js';
import type { ArtifactServiceServer, ReadArtifactRequest, ReadArtifactResponse } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { artifactMessage, type ArtifactStore } from '../artifacts/artifact-store';
import { BusyError } from '../errors';
import { toGrpcStatus } from '../grpc-status';

/** Downloads at once; more would each be slower, and hold memory. A device that is turned away comes again. */
const MOST_READERS = 200;

/** `admit` rejects where whoever calls is no device of the fleet. */
export function artifactService(store: ArtifactStore, admit: (call: Pick<ServerUnaryCall<unknown, unknown>, 'getAuthContext'>) => Promise<void>, log: Logger): ArtifactServiceServer {
  let readers = 0;
  const failure = (error: unknown, path: string) => {
    const status = toGrpcStatus(error);
    if (status.unexpected) log.error({ err: error, path }, 'call failed');
    return status;
  };
  const send = async (call: ServerWritableStream<ReadArtifactRequest, ReadArtifactResponse>): Promise<void> => {
    await admit(call);
    if (readers >= MOST_READERS) throw new BusyError(`${MOST_READERS} devices fetch from here already; come again`);
    readers += 1;
    const gone = new AbortController();
    call.on('cancelled', () => gone.abort());
    try {
      for await (const data of await store.read(call.request.sha256, Number(call.request.offset))) {
        if (gone.signal.aborted) return;
        // A device that reads slowly holds one part here.
        if (!call.write({ data })) await once(call, 'drain', { signal: gone.signal });
      }
      call.end();
    } catch (error) {
      if (!gone.signal.aborted) throw error;
    } finally {
      readers -= 1;
    }
  };
  return {
    findArtifact: (call, callback) => {
      (async () => {
        await admit(call);
        return { artifact: artifactMessage(await store.find(call.request.name)) };
      })().then((answer) => callback(null, answer), (error: unknown) => callback(failure(error, call.getPath()), null));
    },
    readArtifact: (call) => {
      send(call).catch((error: unknown) => call.emit('error', failure(error, call.getPath())));
    },
  };
}
