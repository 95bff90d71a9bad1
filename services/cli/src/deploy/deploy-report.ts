/** What was found and done, as text and as JSON. */
import { formatSize } from '@moefleet/runtime';
import { NONE, table } from '../table';
import { speed } from './device-check';
import type { HostOutcome } from './deploy-host';
import type { HostResult } from './fan-out';
import { destinationText, type HostTarget } from './host-target';

export interface HostReport {
  target: HostTarget;
  result: HostResult<HostOutcome>;
  /** as far as it came */
  partial: Partial<HostOutcome>;
  logFile: string;
}

export type Word = 'deployed' | 'no change' | 'planned' | 'failed';

export function wordOf({ result }: HostReport, dryRun: boolean): Word {
  if (!result.value) return 'failed';
  if (!result.value.changed) return 'no change';
  return dryRun ? 'planned' : 'deployed';
}

export function reportJson(reports: readonly HostReport[], dryRun: boolean, logFolder: string) {
  return {
    hosts: reports.map((report) => ({
      id: report.target.id, destination: destinationText(report.target), outcome: wordOf(report, dryRun),
      facts: report.partial.facts ?? null, findings: report.partial.findings ?? [], steps: report.partial.steps ?? [], seconds: report.partial.seconds ?? {},
      failure: report.result.failure, logFile: report.logFile,
    })),
    logFolder,
  };
}

export function reportText(reports: readonly HostReport[], dryRun: boolean, logFolder: string): string {
  const parts = [table(['DEVICE', 'BOARD', 'MEMORY', 'FREE', 'FLASH', 'SERVICE', 'OUTCOME', 'SECONDS'], reports.map((report) => {
    const { facts, seconds } = report.partial;
    return [
      report.target.id, facts ? facts.board || `${facts.arch}, ${facts.distribution}` : NONE, facts ? formatSize(facts.memoryBytes) : NONE, facts ? formatSize(facts.stateFreeBytes) : NONE,
      facts?.flashBytesPerSecond ? speed(facts.flashBytesPerSecond) : NONE, facts ? (facts.systemd === null ? 'launcher' : `systemd ${facts.systemd}`) : NONE,
      wordOf(report, dryRun).replace('failed', 'FAILED'), seconds?.['total'] === undefined ? NONE : seconds['total'].toFixed(1),
    ];
  }), [2, 3, 4, 7])];
  if (dryRun) {
    for (const { target, partial } of reports) {
      if (partial.steps) parts.push(`\n${target.id}: ${partial.steps.length === 0 ? 'nothing to do' : ''}\n${partial.steps.map((step, i) => `  ${i + 1}. ${step}\n`).join('')}`);
    }
    parts.push('\nNothing has been changed.\n');
  }
  const findings = reports.flatMap(({ target, partial }) => (partial.findings ?? []).filter(({ severity }) => severity !== 'stop').map((finding) => ({ id: target.id, ...finding })));
  if (findings.length > 0) parts.push('\nTo know:\n', ...together(findings.map(({ id, check, found, remedy }) => ({ id, text: `${check}: ${found}${remedy && `\n    ${remedy}`}` }))));
  const failed = reports.filter(({ result }) => result.failure);
  if (failed.length > 0) {
    parts.push(`\n${failed.length} of ${reports.length} failed:\n`, ...failed.map(({ target, result, logFile }) => `  ${target.id}: ${result.failure!.message}\n    ${result.failure!.remedy}\n    log: ${logFile}\n`));
  } else {
    parts.push(`\nlogs: ${logFolder}\n`);
  }
  return parts.join('');
}

/** The same remark of many hosts is made once. */
function together(remarks: readonly { id: string; text: string }[]): string[] {
  const byText = new Map<string, string[]>();
  for (const { id, text } of remarks) byText.set(text, [...(byText.get(text) ?? []), id]);
  return [...byText].map(([text, ids]) => `  ${ids.length > 4 ? `${ids.slice(0, 3).join(', ')} and ${ids.length - 3} more` : ids.join(', ')}: ${text}\n`);
}
