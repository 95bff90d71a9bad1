/** What is told to whoever the kill switch stands in the way of. */
import type { KillSwitch } from '../registry/kill-switch';

export function killText({ why, sinceMs }: KillSwitch): string {
  return `lambda is off on every device since ${new Date(sinceMs).toISOString()}${why ? ` (${why})` : ''}; release it with: moefleet lambda on`;
}
