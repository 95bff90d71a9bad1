/** The models that a learner measures: which they and the texts are, read again only where files were replaced, as hashing takes a load of the model. */
import { stat } from 'node:fs/promises';
import { EvaluationInputError, type EvaluationSubject, type Evaluator } from './evaluator';

export class MeasuredModels {
  private readonly known: { stamp: string | null; subject: EvaluationSubject }[] = [];

  /** `openFile` loads one model, with all texts. */
  constructor(private readonly modelPaths: readonly string[], private readonly textPaths: readonly string[], private readonly openFile: (modelPath: string, signal: AbortSignal) => Promise<Evaluator>) {}

  /** In the order of their paths. Rejects with EvaluationInputError where they cannot be learned from, or two are the same. */
  async identify(signal: AbortSignal): Promise<EvaluationSubject[]> {
    for (const [index, path] of this.modelPaths.entries()) {
      const stamp = await this.stamp(path);
      const known = this.known[index];
      if (known && stamp !== null && known.stamp === stamp) continue;
      const evaluator = await this.openFile(path, signal);
      await evaluator.close();
      this.known[index] = { stamp, subject: evaluator.subject };
    }
    const subjects = this.known.map(({ subject }) => subject);
    const twice = subjects.findIndex(({ modelHash }, i) => subjects.findIndex((other) => other.modelHash === modelHash) !== i);
    if (twice >= 0) throw new EvaluationInputError(`${this.modelPaths[twice]}: the same model as another of --model; name each once`);
    return subjects;
  }

  /** `subject`: one that `identify` has told of. */
  open(subject: EvaluationSubject, signal: AbortSignal): Promise<Evaluator> {
    return this.openFile(this.modelPaths[this.known.findIndex((one) => one.subject === subject)]!, signal);
  }

  /** null where a file cannot be looked at; opening it says why. */
  private async stamp(modelPath: string): Promise<string | null> {
    try {
      const stats = await Promise.all([modelPath, ...this.textPaths].map((path) => stat(path)));
      return stats.map(({ dev, ino, size, mtimeMs }) => [dev, ino, size, mtimeMs].join(':')).join(' ');
    } catch {
      return null;
    }
  }
}
