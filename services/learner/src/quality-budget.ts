/** What quality a device may lose: for the fleet, a group or one device. */
import type { Device } from '@moefleet/proto';
import { ConfigError, parseSelector, type Selector, SelectorError, selectorMatches } from '@moefleet/runtime';
import type { QualityBudget } from './model';

export interface BudgetRule { readonly who: { t: 'device'; id: string } | { t: 'group'; selector: Selector }; readonly budget: QualityBudget }

/** The first rule that holds for the device, else `fleet`. */
export function budgetFor(device: Pick<Device, 'id' | 'labels'>, rules: readonly BudgetRule[], fleet: QualityBudget): QualityBudget {
  return rules.find(({ who }) => (who.t === 'device' ? who.id === device.id : selectorMatches(who.selector, device.labels)))?.budget ?? fleet;
}

/** What the surface has to be measured up to. */
export function loosestBudget(rules: readonly BudgetRule[], fleet: QualityBudget): QualityBudget {
  const all = [fleet, ...rules.map(({ budget }) => budget)];
  return { meanNats: Math.max(...all.map(({ meanNats }) => meanNats)), worstNats: Math.max(...all.map(({ worstNats }) => worstNats)) };
}

/** `device/ID: 0.5%; class=phone: 1%/3%`: who, mean, and the worst domain's (twice the mean where it is left out). Throws ConfigError. */
export function parseBudgetRules(text: string): BudgetRule[] {
  return text.split(';').map((rule) => rule.trim()).filter(Boolean).map((rule) => {
    const at = rule.lastIndexOf(':');
    const who = rule.slice(0, at).trim();
    if (at < 0 || who === '') throw new ConfigError('--budget-for', rule, 'a rule such as class=phone: 1%/2% or device/phone-7: 0.5%');
    const [mean, worst, ...more] = rule.slice(at + 1).split('/').map((part) => readPercent('--budget-for', part));
    if (mean === undefined || more.length > 0) throw new ConfigError('--budget-for', rule, 'one or two percentages after the colon');
    return { who: readWho(who), budget: { meanNats: Math.log1p(mean), worstNats: Math.log1p(worst ?? 2 * mean) } };
  });
}

function readWho(who: string): BudgetRule['who'] {
  if (who.startsWith('device/')) return { t: 'device', id: who.slice('device/'.length) };
  try {
    return { t: 'group', selector: parseSelector(who) };
  } catch (error) {
    if (error instanceof SelectorError) throw new ConfigError('--budget-for', who, `a selector (${error.message})`);
    throw error;
  }
}

/** `1%` and `1` are both one percent, 0.01. Throws ConfigError, which names the setting. */
export function readPercent(setting: string, text: string): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*%?\s*$/.exec(text);
  const percent = Number(match?.[1]);
  if (!match || !(percent > 0) || percent > 100) throw new ConfigError(setting, text, 'a percentage above 0% and up to 100%, such as 1%');
  return percent / 100;
}
