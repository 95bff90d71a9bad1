/** Which model and text the files are, read again only where they were replaced: hashing takes a load of the model. */
import { stat } from 'node:fs/promises';
import type { EvaluationSubject, Evaluator } from './evaluator';

export class SubjectCache {
  private known: { stamp: string; subject: EvaluationSubject } | null = null;

  constructor(private readonly paths: readonly string[], private readonly open: (signal: AbortSignal) => Promise<Evaluator>) {}

  async get(signal: AbortSignal): Promise<EvaluationSubject> {
    const stamp = await this.stamp();
    if (this.known && stamp !== null && this.known.stamp === stamp) return this.known.subject;
    const evaluator = await this.open(signal);
    await evaluator.close();
    if (stamp !== null) this.known = { stamp, subject: evaluator.subject };
    return evaluator.subject;
  }

  /** null where a file cannot be looked at; opening it says why. */
  private async stamp(): Promise<string | null> {
    try {
      const stats = await Promise.all(this.paths.map((path) => stat(path)));
      return stats.map(({ dev, ino, size, mtimeMs }) => [dev, ino, size, mtimeMs].join(':')).join(' ');
    } catch {
      return null;
    }
  }
}
