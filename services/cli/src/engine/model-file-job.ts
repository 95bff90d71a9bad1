/** Jobs on model files: what they ask for, what they bring, and how the child process does them. */
import {
  checkModel, type CheckResult, inspectModel, modelHash, type ModelInfo, packModel, quantizeModel, type QuantizeOptions, type WidenOptions, widenModel, type WriteResult,
} from '@moefleet/edge-agent/engine';

export type ModelFileJob = { t: 'inspectFile'; path: string } | { t: 'identify'; path: string } | { t: 'check'; path: string } | WriteJob;

/** Each writes `target`; what an interrupted one leaves is taken up by the next. */
export type WriteJob = { source: string; target: string; replace: boolean } & (
  | { t: 'pack' }
  /** one of them */
  | { t: 'widen'; size: Partial<Pick<WidenOptions, 'width' | 'expertBytes' | 'totalBytes'>> }
  | ({ t: 'quantize' } & Omit<QuantizeOptions, 'replace'>));

/** `width`: of `widen`; `relativeError`: of `quantize` */
export type WriteOutcome = WriteResult & { width?: number; relativeError?: number };

export interface ModelFileOutcomes {
  inspectFile: { info: ModelInfo };
  /** `hash`: what λ and surfaces belong to */
  identify: { info: ModelInfo; hash: string };
  check: CheckResult;
  pack: WriteOutcome;
  widen: WriteOutcome;
  quantize: WriteOutcome;
}

const JOBS: readonly string[] = ['inspectFile', 'identify', 'check', 'pack', 'widen', 'quantize'] satisfies ModelFileJob['t'][];

export function isModelFileJob<T extends { t: string }>(job: T | ModelFileJob): job is ModelFileJob {
  return JOBS.includes(job.t);
}

export function modelFileOf(job: ModelFileJob): string {
  return 'path' in job ? job.path : job.source;
}

export type ReportBytes = (done: number, total: number, what: string) => void;

export async function performModelFileJob(job: ModelFileJob, report: ReportBytes): Promise<ModelFileOutcomes[keyof ModelFileOutcomes]> {
  const writing = (done: number, total: number) => report(done, total, `writing ${'target' in job ? job.target : ''}`);
  switch (job.t) {
    case 'inspectFile': return { info: await inspectModel(job.path) };
    case 'identify': {
      const info = await inspectModel(job.path);
      return { info, hash: await modelHash(info) };
    }
    case 'check': return checkModel(job.path, (done, total) => report(done, total, `verifying ${job.path}`));
    case 'pack': return packModel(job.source, job.target, job.replace, writing);
    case 'quantize': return quantizeModel(job.source, job.target, { type: job.type, downType: job.downType, requantize: job.requantize, threads: job.threads, replace: job.replace }, writing);
    case 'widen': return widenModel(job.source, job.target, { ...job.size, replace: job.replace }, writing);
  }
}
