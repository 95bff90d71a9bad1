/** The same work on many hosts, so many at a time; one that fails leaves the others alone. */
import { DeployError } from './deploy-error';

export interface HostResult<T> {
  id: string;
  /** null: it failed */
  value: T | null;
  failure: { message: string; remedy: string } | null;
}

/** In the order of `ids`. `work` should reject with DeployError; anything else is told as it is. */
export async function fanOut<T>(ids: readonly string[], atOnce: number, work: (id: string, index: number) => Promise<T>): Promise<HostResult<T>[]> {
  const results: HostResult<T>[] = new Array<HostResult<T>>(ids.length);
  let next = 0;
  const worker = async () => {
    while (next < ids.length) {
      const index = next;
      next += 1;
      const id = ids[index]!;
      try {
        results[index] = { id, value: await work(id, index), failure: null };
      } catch (error) {
        const { message } = error as Error;
        results[index] = { id, value: null, failure: { message, remedy: error instanceof DeployError ? error.remedy : 'see the host\'s log; then run the same command again, it goes on where it was' } };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, ids.length) }, worker));
  return results;
}
