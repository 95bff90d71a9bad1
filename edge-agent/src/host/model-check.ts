/** Reads all of a packed model in a process of its own and compares it with its checksums: what llama.cpp or our reader makes of a bad file ends that process only. */
import { setPriority } from 'node:os';
import { HostProcess } from './host-process';

/** The engine that serves meanwhile goes first. */
const PRIORITY = 10;

/** Rejects with the reason: what is damaged, no checksums (RemoteEngineError), or with `signal`'s. `hostPath`: of the compiled host-main. */
export async function checkModelApart(hostPath: string, env: NodeJS.ProcessEnv, modelPath: string, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const process = new HostProcess({ hostPath, env, onStderr: () => {}, onEnd: () => {} });
  const stop = () => void process.stop();
  signal.addEventListener('abort', stop);
  try {
    if (process.pid !== null) lower(process.pid);
    const { damagedCount, damaged } = await process.call('check', { modelPath });
    if (damagedCount > 0) throw new Error(`${damagedCount} parts are not what their checksums say, the first is ${damaged[0] ?? 'unknown'}`);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener('abort', stop);
    await process.stop();
  }
}

function lower(pid: number): void {
  try {
    setPriority(pid, PRIORITY);
  } catch {
    // It has ended already, which its caller is told.
  }
}
